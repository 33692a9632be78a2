// Calls that must be refused, and how.
#pragma once

#include <doctest/doctest.h>

#include <q4/error.hpp>
#include <string>

#include "bad_input.hpp"

namespace q4::test {

/// Fails the test unless `call` throws an Error of this code whose text has all words.
template <class Call>
void rejects(const std::string& what, ErrorCode code, const Words& words, Call&& call) {
  CAPTURE(what);
  try {
    call();
    FAIL_CHECK("no error");
  } catch (const Error& e) {
    CHECK_MESSAGE(e.code() == code, e.what());
    CHECK_MESSAGE(lacking(e.what(), words).empty(), std::string(e.what()), " lacks", lacking(e.what(), words));
  }
}

template <class Call>
void rejects(const std::string& what, const Words& words, Call&& call) {
  rejects(what, ErrorCode::kInvalidArgument, words, call);
}

}  // namespace q4::test
