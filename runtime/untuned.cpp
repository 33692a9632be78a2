// Writes each untuned problem once.
#include "runtime/untuned.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "runtime/base/file_system.hpp"

namespace q4 {

Result<void> UntunedLog::note(const TuningKey& key) {
  const std::lock_guard lock(mutex_);
  if (path_.empty()) return {};
  if (!std::exchange(begun_, true) && !endless(path_)) {
    std::ifstream in(path_);
    for (std::string line; std::getline(in, line);) lines_.insert(line);
  }
  const std::string line = fmt::format(R"({{"k":{},"n":{},"group":{},"act_order":{},"activation":"{}"}})", key.k, key.n,
                                       key.group, key.act_order, to_string(key.activation));
  if (!lines_.insert(line).second) return {};
  const std::string text = line + '\n';
  const int file = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  std::size_t done = 0;
  while (file >= 0 && done < text.size()) {
    const ssize_t put = ::write(file, text.data() + done, text.size() - done);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) break;
    done += static_cast<std::size_t>(put);
  }
  const bool written = done == text.size();
  const int error = errno;
  if (file >= 0) ::close(file);
  if (written) return {};
  return Failure{fmt::format("record_untuned = {}: {}; untuned problems are not recorded", std::exchange(path_, {}),
                             std::strerror(error))};
}

}  // namespace q4
