// The TCP transport over loopback, against a plain copy through a socket with io_uring: ratios of
// one run. Prints one JSON object.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include <liburing.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nlohmann/json.hpp>
#include <sys/resource.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "rdma/tcp.h"

namespace kvcfs::rdma {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kBlockBytes = 4 << 20;
constexpr Method kBulk = 1, kEcho = 2;
constexpr Millis kLong{60'000};

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Of the whole process, all its threads: what other load on the machine hardly moves.
double CpuSeconds() {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const timeval& time) {
    return double(time.tv_sec) + double(time.tv_usec) / 1e6;
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

// ---- a plain copy: one stream, one thread a side, each with a ring, no protocol

class PlainRing {
 public:
  PlainRing() { KVC_CHECK(io_uring_queue_init(8, &ring_, 0) == 0); }
  ~PlainRing() { io_uring_queue_exit(&ring_); }

  bool Move(int fd, std::span<std::byte> bytes, bool send) {
    while (!bytes.empty()) {
      io_uring_sqe* entry = io_uring_get_sqe(&ring_);
      if (send) io_uring_prep_send(entry, fd, bytes.data(), bytes.size(), MSG_WAITALL);
      if (!send) io_uring_prep_recv(entry, fd, bytes.data(), bytes.size(), MSG_WAITALL);
      io_uring_submit_and_wait(&ring_, 1);
      io_uring_cqe* done = nullptr;
      if (io_uring_wait_cqe(&ring_, &done) != 0) return false;
      const int result = done->res;
      io_uring_cqe_seen(&ring_, done);
      if (result <= 0) return false;
      bytes = bytes.subspan(static_cast<size_t>(result));
    }
    return true;
  }

 private:
  io_uring ring_{};
};

std::pair<Fd, Fd> ConnectedPair() {
  Fd listening(::socket(AF_INET, SOCK_STREAM, 0)), client(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t bytes = sizeof(address);
  auto* raw = reinterpret_cast<sockaddr*>(&address);
  KVC_CHECK(::bind(listening.get(), raw, bytes) == 0 && ::listen(listening.get(), 1) == 0);
  KVC_CHECK(::getsockname(listening.get(), raw, &bytes) == 0);
  KVC_CHECK(::connect(client.get(), raw, bytes) == 0);
  Fd server(::accept(listening.get(), nullptr, nullptr));
  const int on = 1;
  ::setsockopt(server.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  return {std::move(server), std::move(client)};
}

double PlainGigabytes(int blocks) {
  auto [server, client] = ConnectedPair();
  std::vector<std::byte> from(kBlockBytes, std::byte{1}), to(kBlockBytes);
  const auto begin = Clock::now();
  std::thread sender([&, fd = server.get()] {
    PlainRing ring;
    for (int i = 0; i < blocks; ++i) KVC_CHECK(ring.Move(fd, from, true));
  });
  PlainRing ring;
  for (int i = 0; i < blocks; ++i) KVC_CHECK(ring.Move(client.get(), to, false));
  const double seconds = SecondsSince(begin);
  sender.join();
  return double(blocks) * double(kBlockBytes) / seconds / 1e9;
}

// ---- the transport

class BenchService final : public Service {
 public:
  void Serve(Method method, Bytes request, std::span<std::byte>,
             std::unique_ptr<Responder> responder) override {
    if (method == kBulk) {
      responder->Answer({}, block);
    } else {
      responder->Answer(std::move(request));
    }
  }
  std::vector<std::byte> block = std::vector<std::byte>(kBlockBytes, std::byte{1});
};

double BulkGigabytes(Peer& peer, int blocks, int depth) {
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(depth));
  std::atomic<int> left{blocks};
  const auto begin = Clock::now();
  for (int t = 0; t < depth; ++t) {
    threads.emplace_back([&] {
      std::vector<std::byte> to(kBlockBytes);
      while (left.fetch_sub(1) > 0) {
        const Reply reply = peer.CallAndWait(kBulk, {}, {.timeout = kLong, .receive = to});
        KVC_CHECK(reply.code == Code::kOk && reply.bulk_bytes == kBlockBytes);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  return double(blocks) * double(kBlockBytes) / SecondsSince(begin) / 1e9;
}

nlohmann::json CallMicros(Peer& peer, int calls, int clients) {
  std::vector<std::vector<double>> each(static_cast<size_t>(clients));
  std::vector<std::thread> threads;
  threads.reserve(each.size());
  const auto begin = Clock::now();
  for (auto& micros : each) {
    threads.emplace_back([&, mine = calls / clients] {
      for (int i = 0; i < mine; ++i) {
        const auto start = Clock::now();
        const Reply reply =
            peer.CallAndWait(kEcho, Bytes(1024), {.timeout = kLong, .send = {}, .receive = {}});
        KVC_CHECK(reply.code == Code::kOk && reply.head.size() == 1024);
        micros.push_back(SecondsSince(start) * 1e6);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  const double seconds = SecondsSince(begin);
  std::vector<double> all;
  for (const auto& micros : each) all.insert(all.end(), micros.begin(), micros.end());
  std::sort(all.begin(), all.end());
  const auto at = [&](double share) { return all[size_t(share * double(all.size() - 1))]; };
  return {{"clients", clients},
          {"p50", at(0.5)},
          {"p99", at(0.99)},
          {"p999", at(0.999)},
          {"per_second", double(all.size()) / seconds}};
}

int Main(int argc, char** argv) {
  const int blocks = argc > 1 ? std::atoi(argv[1]) : 512;
  const int calls = argc > 2 ? std::atoi(argv[2]) : 20'000;
  if (blocks < 8 || calls < 100) {
    std::fprintf(stderr, "usage: transport_bench [BLOCKS [CALLS]]   (at least 8 and 100)\n");
    return 2;
  }
  BenchService service;
  TransportOptions options;
  options.self = {1, 1};
  auto server = std::move(MakeTcpTransport(options)).value();
  options.self = {2, 2};
  auto client = std::move(MakeTcpTransport(options)).value();
  auto peer = client->Connect(*server->Listen({.host = "127.0.0.1", .port = 0}, &service));

  // Rounds of both, and the median of the rounds: the machine is not ours alone.
  std::vector<double> plain, one, four, ratio, cpu_ratio;
  BulkGigabytes(*peer, 8, 1);
  for (int round = 0; round < 5; ++round) {
    const double begin = CpuSeconds();
    plain.push_back(PlainGigabytes(blocks / 5 + 1));
    const double between = CpuSeconds();
    one.push_back(BulkGigabytes(*peer, blocks / 5 + 1, 1));
    cpu_ratio.push_back((between - begin) / (CpuSeconds() - between));
    four.push_back(BulkGigabytes(*peer, blocks / 5 + 1, 4));
    ratio.push_back(one.back() / plain.back());
  }
  const auto median = [](std::vector<double> of) {
    std::sort(of.begin(), of.end());
    return of[of.size() / 2];
  };
  nlohmann::json out;
  out["plain_copy_gb_s"] = median(plain);
  out["bulk_reply_gb_s"] = median(one);
  out["bulk_reply_4_at_once_gb_s"] = median(four);
  out["bulk_reply_ratio"] = median(ratio);
  out["bulk_reply_cpu_ratio"] = median(cpu_ratio);
  out["bulk_reply_ratio_wanted"] = 0.8;
  out["call_1k_us"] = {CallMicros(*peer, calls, 1), CallMicros(*peer, calls, 4),
                       CallMicros(*peer, calls, 16)};
  std::printf("%s\n", out.dump(2).c_str());
  return 0;
}

}  // namespace
}  // namespace kvcfs::rdma

int main(int argc, char** argv) {
  try {
    return kvcfs::rdma::Main(argc, argv);
  } catch (const std::exception& error) {  // of fmt, JSON and the standard library
    std::fprintf(stderr, "transport_bench: %s\n", error.what());
    return 1;
  }
}
