// Whether runtime/base/fmt.cpp has all that formatting needs: the kinds of values that q4 formats.
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdio>
#include <ctime>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

int main(int count, char** arguments) {
  const std::vector<std::string> words(arguments, arguments + count);
  const double share = count / 3.0;
  std::string text =
      fmt::format("{} {:5} {:#x} {:.3e} {:.1f} {} {:>8} {:<{}} {}", count, -1ll, 255u, share, float(share), true,
                  std::string_view("right"), "left", 9, static_cast<const void*>(arguments));
  text += fmt::format("{} {:%FT%TZ} {}", fmt::join(words, ", "), fmt::gmtime(std::time(nullptr)), 'c') +
          fmt::to_string(share);
  fmt::format_to(std::back_inserter(text), "{:L} {:g} {}", count, share, share);
  fmt::print("{}\n", text);
  fmt::print(stderr, "{}\n", text.size());
}
