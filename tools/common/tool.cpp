// Parses a command line, runs the command and turns errors into exit statuses.
#include "tools/common/tool.hpp"

#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <new>

#include "runtime/base/check.hpp"

namespace q4::tools {

Tool::Tool(const std::string& name, const std::string& purpose, const std::string& examples)
    : app(purpose, name), name_(name) {
  app.set_version_flag("--version", name + " " + Q4_VERSION);
  app.footer("\nExamples:\n" + examples);
  app.get_formatter()->column_width(34);
}

void Tool::add_device() {
  app.add_option("--device", device_name, "cpu, cuda:0, hip:1, ... (default: the best one, see q4-info)")
      ->type_name("D");
}

void Tool::add_json(const std::string& what) { app.add_flag("--json", json, what); }

int Tool::run(int argc, char** argv, const std::function<int()>& body) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;  // 0: --help and --version
  } catch (const Error& e) {          // of an option's own parser
    fmt::print(stderr, "{}: error: {}\nRun with --help for more information.\n", name_, e.what());
    return 2;
  }
  try {
    return body();
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "{}: error: host memory is exhausted; use smaller shapes or fewer rows\n", name_);
    return 1;
  } catch (const std::exception& e) {
    fmt::print(stderr, "{}: error: {}\n", name_, e.what());
    return 1;
  }
}

Device Tool::device(const Runtime& runtime) const {
  const Device device = device_name.empty() ? runtime.best_device() : Device::parse(device_name);
  runtime.info(device);  // throws where there is none
  if (device_name.empty() && device.kind == BackendKind::kCpu)
    fmt::print(stderr, "{}: no GPU can be used (q4-info says why): this runs on the CPU\n", name_);
  return device;
}

CLI::Validator seconds_check(bool zero_too) {
  return CLI::Validator(
      [zero_too](std::string& text) -> std::string {
        double value = 0;
        const bool ok = CLI::detail::lexical_cast(text, value) && std::isfinite(value) && value >= 0;
        if (ok && (zero_too || value > 0)) return "";
        return fmt::format("\"{}\" is no number of seconds {}", text, zero_too ? "of at least 0" : "above 0");
      },
      "");
}

}  // namespace q4::tools
