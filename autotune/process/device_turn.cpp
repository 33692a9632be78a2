// A listening socket as a lock: binding fails while another process has the name, and connecting tells which one.
#include "autotune/process/device_turn.hpp"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>

namespace q4::autotune {
namespace {

socklen_t fill(sockaddr_un& address, const std::string& name) {
  address = {};
  address.sun_family = AF_UNIX;
  const std::size_t size = std::min(name.size(), sizeof(address.sun_path) - 1);
  std::memcpy(address.sun_path + 1, name.data(), size);  // a leading zero: abstract
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + size);
}

/// Not blocking: connections that nobody accepts fill a queue, and the next one would wait for ever.
int open_socket() { return ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0); }

int pid_of(const sockaddr_un& address, socklen_t size) {
  const int socket = open_socket();
  ucred peer{};
  socklen_t length = sizeof(peer);
  const bool known = ::connect(socket, reinterpret_cast<const sockaddr*>(&address), size) == 0 &&
                     ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0;
  ::close(socket);
  return known ? peer.pid : 0;
}

}  // namespace

DeviceTurn::DeviceTurn(const std::string& address) : name_("q4-autotune " + address) {}

bool DeviceTurn::take(int& holder) {
  sockaddr_un address;
  const socklen_t size = fill(address, name_);
  const int socket = open_socket();
  if (::bind(socket, reinterpret_cast<const sockaddr*>(&address), size) == 0 && ::listen(socket, 8) == 0) {
    socket_ = socket;
    return true;
  }
  ::close(socket);
  if (const int pid = pid_of(address, size); pid > 0) holder = pid;  // else the queue is full
  return false;
}

void DeviceTurn::release() {
  if (socket_ >= 0) ::close(socket_);
  socket_ = -1;
}

}  // namespace q4::autotune
