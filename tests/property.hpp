// Random problems: each makes a choice of every list, is checked, and is made simpler for as long as its check fails.
#pragma once

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <chrono>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "reference.hpp"
#include "report.hpp"
#include "runtime/base/settings.hpp"

namespace q4::test {

struct Choice {
  const char* name;
  std::vector<std::int64_t> values;  ///< the simplest first
};

class RandomProblem {
 public:
  RandomProblem(const std::vector<Choice>& choices, std::uint64_t seed) : seed(seed), choices_(&choices) {
    Random random(seed);
    for (const Choice& choice : choices)
      at_.push_back(static_cast<std::size_t>(random.below(static_cast<std::int64_t>(choice.values.size()))));
  }

  std::int64_t operator[](std::string_view name) const { return (*choices_)[place(name)].values[at_[place(name)]]; }

  /// "k=256 n=64 ... seed=7": what $Q4_PROPERTY takes.
  std::string str() const {
    std::string text;
    for (std::size_t i = 0; i < at_.size(); ++i)
      text += fmt::format("{}={} ", (*choices_)[i].name, (*choices_)[i].values[at_[i]]);
    return text + fmt::format("seed={}", seed);
  }
  void parse(const std::string& text) {
    std::istringstream words(text);
    for (std::string word; words >> word;) {
      const auto equals = word.find('=');
      const std::int64_t value = std::stoll(word.substr(equals + 1));
      if (word.starts_with("seed=")) {
        seed = std::stoull(word.substr(5));
        continue;
      }
      const std::size_t i = place(std::string_view(word).substr(0, equals));
      const auto& values = (*choices_)[i].values;
      at_[i] = static_cast<std::size_t>(std::ranges::find(values, value) - values.begin());
      REQUIRE_MESSAGE(at_[i] < values.size(), word << " is no value of the list");
    }
  }

  /// The same problem with simpler choices for which `fails` still holds, one list after the other.
  template <class Fails>
  RandomProblem shrunk(const Fails& fails) const {
    RandomProblem least = *this;
    for (bool smaller = true; smaller;) {
      smaller = false;
      for (std::size_t i = 0; i < at_.size(); ++i)
        for (const std::size_t to : {std::size_t{0}, least.at_[i] / 2, least.at_[i] - 1}) {
          if (least.at_[i] == 0 || to >= least.at_[i]) continue;
          RandomProblem next = least;
          next.at_[i] = to;
          if (fails(next)) least = next, smaller = true;
        }
    }
    return least;
  }

  std::uint64_t seed;

 private:
  std::size_t place(std::string_view name) const {
    std::size_t i = 0;
    while ((*choices_).at(i).name != name) ++i;
    return i;
  }
  const std::vector<Choice>* choices_;
  std::vector<std::size_t> at_;
};

/// Checks `usual` problems, or for $Q4_PROPERTY_SECONDS, from $Q4_PROPERTY_SEED on; or the one that $Q4_PROPERTY says.
/// `check` gives an empty text, or what is wrong; what it throws is wrong too.
template <class Check>
void check_problems(const std::vector<Choice>& choices, std::uint64_t usual, const Check& check) {
  const auto wrong = [&](const RandomProblem& problem) -> std::string {
    try {
      return check(problem);
    } catch (const std::exception& error) { return std::string("throws ") + error.what(); }
  };
  if (const std::string one = setting("Q4_PROPERTY"); !one.empty()) {
    RandomProblem problem(choices, 0);
    problem.parse(one);
    const std::string text = wrong(problem);
    CHECK_MESSAGE(text.empty(), problem.str() << ": " << text);
    return;
  }
  const std::string seconds = setting("Q4_PROPERTY_SECONDS"), first = setting("Q4_PROPERTY_SEED");
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds.empty() ? 0 : std::stol(seconds));
  const std::uint64_t begin = first.empty() ? 1 : std::stoull(first);
  std::uint64_t tried = 0, failed = 0;
  while ((seconds.empty() ? tried < usual / kSlower : std::chrono::steady_clock::now() < end) && failed < 3) {
    const RandomProblem problem(choices, begin + tried++);
    const std::string text = wrong(problem);
    if (text.empty()) continue;
    ++failed;
    int left = 300;  // tries: each may compile kernels
    const RandomProblem least =
        problem.shrunk([&](const RandomProblem& simpler) { return left-- > 0 && !wrong(simpler).empty(); });
    FAIL_CHECK("Q4_PROPERTY=\"" << least.str() << "\": " << wrong(least) << "\n  drawn as " << problem.str() << ": "
                                << text);
  }
  MESSAGE(tried << " problems from seed " << begin);
  CHECK(tried > 0);
}

}  // namespace q4::test
