# q4_sbom(OUTPUT name version license url ...): a software bill of materials of what is compiled into q4's binaries, as CycloneDX
# 1.5 (JSON). What is opened at run time (drivers, NVRTC, BLAS, libsodium) is not part of them, nor are the C and C++ run times,
# which are linked dynamically.
function(q4_sbom output)
  set(components "")
  while(ARGN)
    list(POP_FRONT ARGN name version license url)
    string(REGEX REPLACE "^v" "" version "${version}")
    string(APPEND components "${comma}
    {
      \"type\": \"library\",
      \"name\": \"${name}\",
      \"version\": \"${version}\",
      \"licenses\": [{\"license\": {\"id\": \"${license}\"}}],
      \"externalReferences\": [{\"type\": \"website\", \"url\": \"${url}\"}]
    }")
    set(comma ",")
  endwhile()
  file(CONFIGURE OUTPUT ${output} @ONLY CONTENT "{
  \"bomFormat\": \"CycloneDX\",
  \"specVersion\": \"1.5\",
  \"version\": 1,
  \"metadata\": {
    \"component\": {\"type\": \"library\", \"name\": \"q4\", \"version\": \"@q4_version@\", \"licenses\": [{\"license\": {\"id\": \"Apache-2.0\"}}]},
    \"tools\": [{\"name\": \"@CMAKE_CXX_COMPILER_ID@\", \"version\": \"@CMAKE_CXX_COMPILER_VERSION@\"}]
  },
  \"components\": [@components@
  ]
}
")
endfunction()
