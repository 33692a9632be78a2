# Script mode: fails unless PAGE has a block that is EXAMPLE, byte for byte.
file(READ ${PAGE} page)
file(READ ${EXAMPLE} example)
string(FIND "${page}" "\n${example}```\n" at)
if(at EQUAL -1)
  message(FATAL_ERROR "${PAGE} has no block that is ${EXAMPLE}: copy the file there")
endif()
