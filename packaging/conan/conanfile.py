"""q4 as a Conan 2 package, from the sources of this clone: conan create packaging/conan -s compiler.cppstd=20"""
import os
import re

from conan import ConanFile
from conan.errors import ConanInvalidConfiguration
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load, rmdir


class Q4(ConanFile):
    name = "q4"
    description = "4-bit GPTQ and AWQ weights, multiplied: run-time compiled kernels for CUDA, HIP and the CPU"
    license = "Apache-2.0"
    topics = ("quantization", "gptq", "awq", "inference", "cuda", "rocm")
    package_type = "library"
    settings = "os", "compiler", "build_type", "arch"
    options = {"shared": [True, False], "fPIC": [True, False], "tools": [True, False]}
    default_options = {"shared": False, "fPIC": True, "tools": False}
    implements = ["auto_shared_fpic"]

    @property
    def _root(self) -> str:
        return os.path.join(self.recipe_folder, "..", "..")

    def set_version(self) -> None:
        found = re.search(r'define Q4_VERSION "(.*)"', load(self, os.path.join(self._root, "include/q4/version.h")))
        assert found
        self.version = found[1]

    def export_sources(self) -> None:
        copy(self, "CMakeLists.txt", self._root, self.export_sources_folder)
        copy(self, "LICENSE", self._root, self.export_sources_folder)
        for folder in ("autotune", "cmake", "include", "kernels", "runtime", "share", "tools"):
            copy(self, f"{folder}/*", self._root, self.export_sources_folder)

    def requirements(self) -> None:
        # Compiled in, and seen by nobody: no header of q4 includes them.
        self.requires("fmt/[>=9.1 <12]", visible=False, options={"header_only": True})
        self.requires("nlohmann_json/[>=3.11 <4]", visible=False)
        if self.options.tools:
            self.requires("cli11/[>=2.3 <3]", visible=False)

    def validate(self) -> None:
        check_min_cppstd(self, 20)
        if self.settings.os != "Linux":
            raise ConanInvalidConfiguration("q4 is for Linux")

    def layout(self) -> None:
        cmake_layout(self)

    def generate(self) -> None:
        CMakeDeps(self).generate()
        toolchain = CMakeToolchain(self)
        toolchain.cache_variables["Q4_BUILD_TESTS"] = False
        toolchain.cache_variables["Q4_BUILD_TOOLS"] = bool(self.options.tools)
        toolchain.generate()

    def build(self) -> None:
        cmake = CMake(self)
        cmake.configure()
        cmake.build(target="q4-installed")

    def package(self) -> None:
        CMake(self).install()
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))
        for folder in ("lib/cmake", "lib/pkgconfig", "share/doc"):  # Conan writes its own
            rmdir(self, os.path.join(self.package_folder, folder))

    def package_info(self) -> None:
        self.cpp_info.set_property("cmake_file_name", "q4")
        self.cpp_info.set_property("cmake_target_name", "q4::q4")
        self.cpp_info.set_property("pkg_config_name", "q4")
        self.cpp_info.libs = ["q4"]
        self.cpp_info.system_libs = ["dl", "m", "pthread"]
        if not self.options.shared:
            self.cpp_info.defines = ["Q4_STATIC"]
