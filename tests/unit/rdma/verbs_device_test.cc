// What is said when RDMA does not work: the reason, and what to do. Needs no device.
#include "rdma/verbs_device.h"

#include <cerrno>

#include <gtest/gtest.h>
#include <sys/resource.h>

#include "rdma/verbs.h"
#include "rdma/verbs_link.h"

namespace kvcfs::rdma {
namespace {

bool Says(const Error& error, Code code, std::string_view text) {
  EXPECT_EQ(error.code, code) << error.text;
  EXPECT_NE(error.text.find(text), std::string::npos) << error.text;
  return error.code == code;
}

TEST(VerbsDevice, EveryErrorSaysWhatToDo) {
  Says(VerbsError(ENODEV, "RDMA devices"), Code::kUnsupported, "modprobe");
  Says(VerbsError(EACCES, "librdmacm"), Code::kUnsupported, "/dev/infiniband");
  Says(VerbsError(ENOMEM, "a queue pair"), Code::kNoSpace, "LimitMEMLOCK");
  Says(VerbsError(EADDRNOTAVAIL, "10.0.0.1"), Code::kUnsupported, "no RDMA device has");
  Says(VerbsError(EIO, "x"), Code::kIo, "x: ");
  Says(RegisterError(ENOMEM, 1 << 30, 64 << 10), Code::kNoSpace,
       "the locked memory limit is 64 KiB: raise LimitMEMLOCK");
  Says(RegisterError(ENOMEM, 1 << 30, RLIM_INFINITY), Code::kNoSpace, "fewer or smaller");
  Says(RegisterError(EFAULT, 1 << 30, 0), Code::kInvalid, "1024 MiB");
}

TEST(VerbsDevice, CompletionsAndConnections) {
  Says(CompletionError(IBV_WC_REM_ACCESS_ERR), Code::kStale, "withdrew");
  Says(CompletionError(IBV_WC_RETRY_EXC_ERR), Code::kUnavailable, "4791");
  Says(CompletionError(IBV_WC_WR_FLUSH_ERR), Code::kUnavailable, "ended");
  Says(CompletionError(IBV_WC_LOC_PROT_ERR), Code::kInternal, "not registered");
  Says(ConnectError(RDMA_CM_EVENT_ADDR_ERROR, -ENODEV, "h:1"), Code::kUnsupported,
       "no RDMA device");
  Says(ConnectError(RDMA_CM_EVENT_UNREACHABLE, 0, "h:1"), Code::kUnavailable, "MTU");
  Says(ConnectError(RDMA_CM_EVENT_REJECTED, 8, "h:1"), Code::kUnavailable, "h:1");
}

TEST(VerbsDevice, AHostWithoutOneIsTold) {
  TransportOptions options;
  options.self = {1, 1};
  const auto made = MakeVerbsTransport(options);
  if (made.ok()) GTEST_SKIP() << "this host has an RDMA device";
  EXPECT_EQ(made.code(), Code::kUnsupported) << made.error().text;
}

TEST(VerbsLink, AGreetingIsReadBackOrRefused) {
  VerbsGreeting greeting{.index = 3, .token = {}, .receives = 32};
  greeting.token.fill(std::byte{7});
  const Bytes bytes = greeting.Encode();
  ASSERT_EQ(bytes.size(), kGreetingBytes);
  // librdmacm pads what it carries.
  Bytes padded = bytes;
  padded.resize(56);
  const auto read = VerbsGreeting::Decode(padded);
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->index, 3);
  EXPECT_EQ(read->token, greeting.token);
  EXPECT_EQ(read->receives, 32u);
  for (size_t length = 0; length < 28; ++length) {
    EXPECT_FALSE(VerbsGreeting::Decode(std::span(bytes).first(length)).ok());
  }
  padded[4] = std::byte{9};
  EXPECT_EQ(VerbsGreeting::Decode(padded).code(), Code::kUnsupported);
  padded[0] = std::byte{9};
  EXPECT_EQ(VerbsGreeting::Decode(padded).code(), Code::kCorrupt);
}

}  // namespace
}  // namespace kvcfs::rdma
