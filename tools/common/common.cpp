// Tables, numbers, progress and interrupts.
#include "tools/common/common.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>

#include "runtime/base/check.hpp"
#include "runtime/base/settings.hpp"

namespace q4::tools {

std::vector<std::string> split(const std::string& text, const char* separators) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; (begin = text.find_first_not_of(separators, begin)) != std::string::npos;) {
    const std::size_t end = std::min(text.find_first_of(separators, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return parts;
}

std::string trimmed(const std::string& text) {
  constexpr const char* kSpaces = " \t\r\n\v\f";
  const std::size_t begin = text.find_first_not_of(kSpaces);
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(kSpaces) + 1 - begin);
}

std::string without_controls(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < ' ' || c == '\x7f') c = '?';
  return text;
}

namespace {

bool numeric(const std::string& cell) {
  return cell.find_first_of("0123456789") != std::string::npos &&
         cell.find_first_not_of("0123456789.,+-%xe ") == std::string::npos;
}

}  // namespace

void Table::add(std::vector<std::string> row) {
  for (std::string& cell : row) cell = without_controls(std::move(cell));
  rows_.push_back(std::move(row));
}

std::string Table::str() const {
  const std::size_t columns = header_.size();
  std::vector<std::size_t> width(columns);
  std::vector<bool> right(columns, true);
  for (std::size_t c = 0; c < columns; ++c) {
    width[c] = header_[c].size();
    for (const auto& row : rows_) {
      width[c] = std::max(width[c], row[c].size());
      if (!row[c].empty() && row[c] != "-" && !numeric(row[c])) right[c] = false;
    }
  }
  std::string text;
  const auto put = [&](const std::vector<std::string>& row) {
    std::string line;
    for (std::size_t c = 0; c < columns; ++c)
      line += right[c] ? fmt::format("{:>{}}  ", row[c], width[c]) : fmt::format("{:<{}}  ", row[c], width[c]);
    text += line.erase(line.find_last_not_of(' ') + 1) + '\n';
  };
  put(header_);
  for (const auto& row : rows_) put(row);
  return text;
}

std::string number(double value) {
  if (!(value > 0)) return "-";
  const int digits = std::clamp(3 - static_cast<int>(std::floor(std::log10(value))), 0, 6);
  return fmt::format("{:.{}f}", value, digits);
}

std::string percent(double share) { return fmt::format("{:+.1f}%", share * 100); }

std::string megabytes(std::size_t bytes) {
  return bytes == 0 ? "-" : fmt::format("{} MB", number(static_cast<double>(bytes) / 1e6));
}

std::string progress_bar(double fraction, double elapsed_s, double limit_s, const std::string& text, int columns) {
  constexpr int kCells = 20;
  fraction = std::clamp(fraction, 0.0, 1.0);
  const int full = static_cast<int>(fraction * kCells);
  std::string line =
      fmt::format("[{}{}] {:3.0f}%", std::string(full, '#'), std::string(kCells - full, '.'), fraction * 100);
  double left = fraction > 0.02 ? elapsed_s / fraction - elapsed_s : limit_s - elapsed_s;
  if (limit_s > 0) left = std::min(left, limit_s - elapsed_s);
  const std::string eta = left > 0 ? fmt::format("  {:.0f} s left", left) : "";
  const int room = columns - 1 - static_cast<int>(line.size() + eta.size()) - 2;
  return line + "  " + text.substr(0, static_cast<std::size_t>(std::max(room, 0))) + eta;
}

namespace {
constexpr std::chrono::milliseconds kBetweenDrawings{100}, kBetweenLines{3000};
}

Progress::Progress(bool quiet)
    : terminal_(::isatty(STDERR_FILENO) && setting("TERM") != "dumb"),
      quiet_(quiet),
      start_(std::chrono::steady_clock::now()) {}

Progress::~Progress() { clear(); }

void Progress::clear() {
  if (drawn_) std::fputs("\r\033[K", stderr);
  drawn_ = false;
}

void Progress::update(double fraction, const std::string& text, double limit_s) {
  if (quiet_) return;
  const auto now = std::chrono::steady_clock::now();
  if (terminal_ ? drawn_ && now - last_ < kBetweenDrawings : now - last_ < kBetweenLines) return;
  last_ = now;
  if (!terminal_) {
    fmt::print(stderr, "{:3.0f}%  {:.0f} s  {}\n", std::clamp(fraction, 0.0, 1.0) * 100,
               std::chrono::duration<double>(now - start_).count(), text);
    return;
  }
  winsize size{};
  const int columns = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 100;
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  clear();
  fmt::print(stderr, "{}", progress_bar(fraction, elapsed, limit_s, text, columns));
  std::fflush(stderr);
  drawn_ = true;
}

void Progress::line(const std::string& text) {
  if (quiet_) return;
  clear();
  fmt::print(stderr, "{}\n", text);
}

std::vector<std::int64_t> powers_of_two(std::int64_t largest) {
  std::vector<std::int64_t> list;
  for (std::int64_t m = 1; m < largest; m *= 2) list.push_back(m);
  list.push_back(largest);
  return list;
}

std::vector<std::int64_t> parse_m_list(const std::string& text) {
  const auto positive = [&](const std::string& item) {
    check(!item.empty() && item.size() < 10 && item.find_first_not_of("0123456789") == std::string::npos &&
              std::stoll(item) > 0,
          "--m = \"{}\": \"{}\" is no positive number of rows; write 1,8,64 or 1-16 (1, 2, 4, 8, 16)", text, item);
    return static_cast<std::int64_t>(std::stoll(item));
  };
  std::vector<std::int64_t> list;
  for (const std::string& item : split(text, ", ")) {
    const auto dash = item.find('-');
    if (dash == std::string::npos) {
      list.push_back(positive(item));
      continue;
    }
    const std::int64_t first = positive(item.substr(0, dash)), last = positive(item.substr(dash + 1));
    check(first <= last, "--m = \"{}\": the range {} runs backwards", text, item);
    for (std::int64_t m = first; m < last; m *= 2) list.push_back(m);
    list.push_back(last);
  }
  check(!list.empty(), "--m = \"{}\": no number of rows; write 1,8,64 or 1-16 (1, 2, 4, 8, 16)", text);
  std::sort(list.begin(), list.end());
  list.erase(std::unique(list.begin(), list.end()), list.end());
  return list;
}

std::uint64_t parse_bytes(const std::string& text, const std::string& option) {
  const std::size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
  std::string unit = trimmed(text.substr(digits));
  for (char& c : unit) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  const bool binary = unit.size() > 1 && unit.ends_with("IB");
  std::uint64_t value = 0, factor = 1;
  const std::size_t power = std::string("KMGT").find(unit.substr(0, 1));
  bool ok = digits > 0 && digits <= 18;
  if (!unit.empty() && unit != "B") {
    ok = ok && power != std::string::npos && (unit.size() == 1 || unit.substr(1) == "B" || unit.substr(1) == "IB");
    for (std::size_t i = 0; ok && i <= power; ++i) factor *= binary ? 1024 : 1000;
  }
  if (ok) ok = !__builtin_mul_overflow(std::uint64_t{std::stoull(text.substr(0, digits))}, factor, &value);
  check(ok && value <= INT64_MAX, "{} = {}: write a number of bytes with B, KB, MB or GB, such as 500MB or 5GB", option,
        text);
  return value;
}

DType parse_activation(const std::string& text, const std::string& where) {
  for (const DType type : {DType::kF16, DType::kBF16, DType::kF32})
    if (text == to_string(type)) return type;
  fail(ErrorCode::kInvalidArgument, "{} = \"{}\": must be fp16, bf16 or, on the CPU, fp32", where, text);
}

std::string default_tuning_file(const Runtime& runtime) {
  return runtime.cache_dir().empty() ? "" : runtime.cache_dir() + "/tuning.jsonl";
}

namespace {
std::atomic<std::int64_t> interrupted_ms{0};                    // 0: not yet
static_assert(std::atomic<std::int64_t>::is_always_lock_free);  // a signal handler may set it

std::int64_t monotonic_ms() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1000000 + 1;
}
}  // namespace

void end_at_interrupt() {
  const auto handler = [](int) {
    constexpr char kText[] = "interrupted before anything was measured\n";
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, kText, sizeof(kText) - 1);
    ::_exit(130);
  };
  std::signal(SIGINT, handler);
  std::signal(SIGTERM, handler);
}

void catch_interrupt() {
  const auto handler = [](int signal) {
    // Programs that pass signals on (timeout) send each to the process and to its group: that is still the first.
    constexpr std::int64_t kSameMs = 300;
    std::int64_t first = 0;
    const std::int64_t now = monotonic_ms();
    if (interrupted_ms.compare_exchange_strong(first, now) || now - first < kSameMs) return;
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  };
  std::signal(SIGINT, handler);
  std::signal(SIGTERM, handler);  // what Slurm and Kubernetes send when time is up
}

bool interrupted() { return interrupted_ms != 0; }

}  // namespace q4::tools
