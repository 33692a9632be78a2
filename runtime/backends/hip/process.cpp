// Memory files instead of pipes: nobody waits for anybody in between.
#include "runtime/backends/hip/process.hpp"

#include <fmt/format.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

extern char** environ;

namespace q4::hip {
namespace {

/// An anonymous file in memory.
class MemoryFile {
 public:
  MemoryFile() : descriptor_(::memfd_create("q4", MFD_CLOEXEC)) {}
  ~MemoryFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  MemoryFile(const MemoryFile&) = delete;
  int descriptor() const { return descriptor_; }

  bool write(const std::string& text) {
    for (std::size_t done = 0; done < text.size();) {
      const auto n = ::write(descriptor_, text.data() + done, text.size() - done);
      if (n <= 0) return false;
      done += static_cast<std::size_t>(n);
    }
    return ::lseek(descriptor_, 0, SEEK_SET) == 0;
  }
  std::string read() {
    std::string text;
    char buffer[1 << 14];
    ::lseek(descriptor_, 0, SEEK_SET);
    for (ssize_t n; (n = ::read(descriptor_, buffer, sizeof buffer)) > 0;)
      text.append(buffer, static_cast<std::size_t>(n));
    return text;
  }

 private:
  int descriptor_;
};

}  // namespace

Outcome run_program(const std::vector<std::string>& arguments, const std::string& input) {
  Outcome outcome;
  MemoryFile in, out, error;
  if (!in.write(input) || out.descriptor() < 0 || error.descriptor() < 0) {
    outcome.problem = fmt::format("memfd_create: {}", std::strerror(errno));
    return outcome;
  }
  std::vector<char*> words;
  for (const auto& argument : arguments) words.push_back(const_cast<char*>(argument.c_str()));
  words.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, in.descriptor(), STDIN_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, out.descriptor(), STDOUT_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, error.descriptor(), STDERR_FILENO);
  pid_t child = 0;
  const int failed = ::posix_spawnp(&child, words[0], &actions, nullptr, words.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (failed) {
    outcome.problem = fmt::format("{}: {}", arguments[0], std::strerror(failed));
    return outcome;
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {}
  outcome.out = out.read(), outcome.error = error.read();
  if (WIFEXITED(status))
    outcome.status = WEXITSTATUS(status);
  else
    outcome.problem =
        fmt::format("{} was ended by signal {} ({})", arguments[0], WTERMSIG(status), strsignal(WTERMSIG(status)));
  return outcome;
}

}  // namespace q4::hip
