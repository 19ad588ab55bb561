// Hosts that are network namespaces, on one bridge: for processes that shall not share a network.
//
// The bridge, 10.78.0.254, is in a namespace that the test program moves into; hosts have
// 10.78.0.1, .2 and so on, and know one another, and are known here, by their names. Nothing of it
// has a name in the system: all of it goes with the program and the processes in it.
// Needs WhyNoServer() to have been asked: what is at /etc/hosts is only for this program.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/fd.h"
#include "tests/integration/calls.h"

namespace kvcfs::test {

class HostNetwork {
 public:
  // What is missing here for one (root, ip, tc); empty: nothing is.
  static std::string WhyNone();

  explicit HostNetwork(const std::vector<std::string>& names);
  ~HostNetwork();
  HostNetwork(const HostNetwork&) = delete;
  HostNetwork& operator=(const HostNetwork&) = delete;

  const std::string& address(const std::string& host) const { return hosts_.at(host).address; }
  // Its network namespace, as a path.
  const std::string& path(const std::string& host) const { return hosts_.at(host).path; }

  // ---- What may happen to a link, and be taken back
  void CutLink(const std::string& host, bool cut);
  // What `at` sends to `to` is thrown away.
  void Blackhole(const std::string& at, const std::string& to, bool on);
  // What the host sends has this rate, as 8mbit; empty: what the machine can.
  void SlowLink(const std::string& host, const std::string& rate);

 private:
  struct Host {
    Fd space;
    std::string path, address;
  };
  void Run(const std::string& host, const std::string& command);

  std::map<std::string, Host> hosts_;
  TemporaryDirectory directory_;
  bool knows_names_ = false;
};

// The words, to be run there; an empty path: here.
std::vector<std::string> InNetwork(const std::string& path, std::vector<std::string> words);

}  // namespace kvcfs::test
