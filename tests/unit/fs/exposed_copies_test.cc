// A holder's copies, read one-sided by a peer: over TCP here, whose server copies in software; in
// tests/vm over verbs.
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <thread>

#include <gtest/gtest.h>

#include "base/crc32c.h"
#include "base/log.h"
#include "fs/copy_holder.h"
#include "meta/cluster_service.h"
#include "meta/copy_reader.h"
#include "tests/unit/fs/store_parts.h"
#include "tests/unit/rdma/tcp_fixture.h"

namespace kvcfs::fs {
namespace {

using meta::BlockFacts;
using meta::BlockId;
using rdma::Bytes;
using rdma::Eventually;
using rdma::kLong;
using Copy = std::pair<BlockId, uint64_t>;

// Has no more locked memory than it is told.
class NarrowTransport final : public rdma::Transport {
 public:
  NarrowTransport(rdma::Transport* inner, uint64_t bytes) : inner_(inner), left_(bytes) {}
  Result<rdma::Address> Listen(const rdma::Address&, rdma::Service*) override {
    return Error{Code::kUnsupported, "not here"};
  }
  std::shared_ptr<rdma::Peer> Connect(const rdma::Address&) override { return nullptr; }
  Result<uint64_t> Expose(std::span<std::byte> memory, rdma::Access access) override {
    const auto region = inner_->Expose(memory, access);
    const MutexLock lock(mutex_);
    if (region.ok()) lengths_[*region] = memory.size();
    return region;
  }
  Result<rdma::RegionKey> AwaitKey(uint64_t region) override {
    const MutexLock lock(mutex_);
    ++asked_;
    if (lengths_.at(region) > left_) return Error{Code::kNoSpace, "raise LimitMEMLOCK"};
    left_ -= lengths_.at(region);
    return rdma::RegionKey{};
  }
  void Withdraw(uint64_t region) override { inner_->Withdraw(region); }
  rdma::TransportStats Stats() const override { return inner_->Stats(); }
  int asked() {
    const MutexLock lock(mutex_);
    return asked_;
  }

 private:
  rdma::Transport* const inner_;
  Mutex mutex_;
  uint64_t left_ KVC_GUARDED_BY(mutex_);
  int asked_ KVC_GUARDED_BY(mutex_) = 0;
  std::map<uint64_t, uint64_t> lengths_ KVC_GUARDED_BY(mutex_);
};

class ExposedCopiesTest : public testing::Test, protected StoreParts {
 protected:
  static constexpr uint32_t kLength = 60'001;  // no multiple of anything
  static constexpr meta::SpaceId kSpace{0x1122334455667788, 0x99};

  void SetUp() override {
    SetLogLevel(LogLevel::kError);
    options_.writeback_delay = std::chrono::milliseconds(0);
    options_.room_wait = std::chrono::seconds(30);
    auto client = rdma::MakeTestTransport(rdma::OptionsOf(2));
    ASSERT_TRUE(client.ok()) << client.error().text;
    client_ = std::move(*client);
    peers_ = std::make_unique<meta::ClusterPeers>(client_.get());
    reader_ = std::make_unique<meta::CopyReader>(meta::OneSided::kAlways, &clock_, peers_.get());
  }
  void TearDown() override {
    const auto peer = peers_->Find(kHolder);
    if (rdma::TestsVerbs() && peer != nullptr && !may_break_) {
      EXPECT_EQ(peer->provider(), "verbs") << "queue pairs broke on the way";
    }
    Kill();
    peers_->Clear();
    client_.reset();
  }

  void Start(bool exposes = true) {
    OpenParts(CopyHolder::AppliedSequence, [](const auto&, const auto&) {});
    ASSERT_FALSE(HasFatalFailure());
    auto holder = CopyHolder::Open(options_, {.meta = meta_.get(),
                                              .slots = slots_.get(),
                                              .resident = resident_.get(),
                                              .segments = segments_.get(),
                                              .clock = &clock_});
    ASSERT_TRUE(holder.ok()) << holder.error().text;
    holder_ = std::move(*holder);
    if (segments_ != nullptr) segments_->Start(holder_.get());
    resident_->Start();
    holder_->Start();
    auto server = rdma::MakeTestTransport(rdma::OptionsOf(1));
    ASSERT_TRUE(server.ok()) << server.error().text;
    server_ = std::move(*server);
    meta::ClusterService::Options options;
    options.self = kHolder;
    options.roles = meta::kRoleBlocks;
    service_ = std::make_unique<meta::ClusterService>(
        options, meta::ClusterService::Parts{
                     .clock = &clock_,
                     .peers = peers_.get(),
                     .reader = reader_.get(),
                     .may_serve = [] { return true; },
                     .promise = [](uint64_t) { return Millis(0); },
                     .name_of_space =
                         [](const meta::SpaceId&) { return std::optional<std::string>("space"); },
                     .status = [] { return std::string(); }});
    if (exposes) holder_->ExposeBy(server_.get());
    service_->Start(holder_.get());
    const auto address = server_->Listen(address_, service_.get());
    ASSERT_TRUE(address.ok()) << address.error().text;
    address_ = *address;
    meta::ClusterView view;
    view.epoch = 1;
    view.nodes.push_back({kHolder, 1, meta::kRoleBlocks, address_.ToString()});
    peers_->SetView(view);
    if (!rdma::TestsVerbs()) return;
    const auto peer = peers_->Find(kHolder);
    ASSERT_TRUE(Eventually([&] {
      (void)peer->CallAndWait(meta::kMethodSlots, {}, {.timeout = kLong});
      return peer->provider() == "verbs";
    }));
  }
  void Kill() {
    if (holder_ == nullptr) return;
    service_->Stop();
    holder_->ExposeBy(nullptr);
    server_.reset();
    service_.reset();
    resident_->Stop();
    holder_->Stop();
    if (segments_ != nullptr) segments_->Stop();
    segments_.reset();
    holder_.reset();
    CloseParts();
  }

  static BlockKey KeyOf(uint64_t n) {
    BlockKey key;
    for (size_t i = 0; i < 4; ++i) {
      const uint64_t word = (n + 1) * 0x9e3779b97f4a7c15u + i * 0xbf58476d1ce4e5b9u;
      std::memcpy(key.bytes.data() + 8 * i, &word, 8);
    }
    return key;
  }
  static Bytes BytesOf(uint64_t n, uint32_t length = kLength) {
    Bytes bytes(length);
    std::mt19937_64 random(n);
    for (size_t i = 0; i < length; i += 8) {
      const uint64_t word = random();
      std::memcpy(bytes.data() + i, &word, std::min<size_t>(8, length - i));
    }
    return bytes;
  }
  // A sealed copy; `of`: the block whose bytes these are.
  Copy Seal(uint64_t n, uint32_t length = kLength) {
    BlockFacts facts;
    facts.id = {kSpace, KeyOf(n)};
    facts.length = length;
    const Bytes bytes = BytesOf(n, length);
    facts.crc32c = Crc32c(bytes);
    const auto generation = holder_->Accept(facts, bytes);
    EXPECT_TRUE(generation.ok()) << n << ": " << generation.error().text;
    return {facts.id, generation.ok() ? *generation : 0};
  }
  Copy Put(uint64_t n, uint32_t length = kLength) {
    const Copy copy = Seal(n, length);
    holder_->Mark(copy.first, copy.second, 5);
    return copy;
  }
  bool Exposed(uint64_t slots) {
    return Eventually([&] {
      const ExposedSlots::Counts counts = holder_->Count().exposed;
      return counts.slots == slots && counts.waiting_slots == 0;
    });
  }
  struct Got {
    Code code = Code::kOk;
    bool one_sided = false;
    Bytes bytes;
  };
  Got Read(const Copy& copy, uint32_t length = kLength) {
    Got got;
    got.bytes.resize(length);
    const auto outcome = reader_->Read(kHolder, {copy.first, copy.second}, got.bytes, 1, kLong);
    got.code = outcome.reply.code;
    got.one_sided = outcome.one_sided;
    if (got.code == Code::kOk) {
      EXPECT_EQ(outcome.received, length);
      const auto* reply = std::get_if<meta::ReadReply>(&outcome.reply.body);
      EXPECT_TRUE(reply != nullptr && reply->key == copy.first.key &&
                  reply->generation == copy.second && reply->crc32c == Crc32c(got.bytes));
    }
    return got;
  }
  void ExpectRead(uint64_t n, const Copy& copy, bool one_sided, uint32_t length = kLength) {
    const Got got = Read(copy, length);
    EXPECT_EQ(got.code, Code::kOk) << n;
    EXPECT_EQ(got.one_sided, one_sided) << n;
    EXPECT_EQ(got.bytes, BytesOf(n, length)) << n;
  }

  const meta::NodeId kHolder{1, 1};
  bool may_break_ = false;  // a READ may come later than kStay
  SystemClock clock_;
  CopyHolderOptions options_;
  rdma::Address address_{.host = rdma::TestHost(), .port = 0};
  std::unique_ptr<rdma::Transport> client_, server_;
  std::unique_ptr<meta::ClusterPeers> peers_;
  std::unique_ptr<meta::CopyReader> reader_;
  std::unique_ptr<CopyHolder> holder_;
  std::unique_ptr<meta::ClusterService> service_;
};

TEST_F(ExposedCopiesTest, WhatIsPublishedIsReadByThreeReadsAndNoCall) {
  Start();
  std::vector<Copy> copies;
  for (uint64_t n = 0; n < 8; ++n) copies.push_back(Put(n));
  ASSERT_TRUE(Exposed(8));
  ExpectRead(0, copies[0], true);  // and learns where the headers are
  const rdma::TransportStats before = client_->Stats();
  for (uint64_t n = 0; n < 8; ++n) ExpectRead(n, copies[n], true);
  const rdma::TransportStats after = client_->Stats();
  EXPECT_EQ(after.calls, before.calls);
  EXPECT_EQ(after.reads - before.reads, 3 * 8u);
}

TEST_F(ExposedCopiesTest, WhatIsNotThereOneSidedIsAskedForByACall) {
  Start();
  const Copy sealed = Seal(1), small = Put(2, 1000), known = Put(3);
  ASSERT_TRUE(Exposed(1));
  ExpectRead(3, known, true);
  ExpectRead(1, sealed, false);
  ExpectRead(2, small, false, 1000);
  EXPECT_EQ(Read({known.first, known.second + 1}).code, Code::kNotFound);
  EXPECT_EQ(Read({{kSpace, KeyOf(77)}, known.second}).code, Code::kNotFound);
  holder_->Free(known.first, known.second);
  EXPECT_EQ(Read(known).code, Code::kNotFound);
  EXPECT_TRUE(Eventually([&] { return holder_->Count().exposed.leaving_bytes == 0; }));
  // Once it is published, it is.
  holder_->Mark(sealed.first, sealed.second, 6);
  ASSERT_TRUE(Exposed(1));
  ExpectRead(1, sealed, true);
}

TEST_F(ExposedCopiesTest, ManyLengthsLandWhole) {
  Start();
  const uint32_t lengths[] = {16 << 10, (16 << 10) + 1, 65'535, 1 << 20, (1 << 20) - 7};
  std::vector<Copy> copies;
  for (uint64_t n = 0; n < std::size(lengths); ++n) copies.push_back(Put(n, lengths[n]));
  ASSERT_TRUE(Exposed(std::size(lengths)));
  for (uint64_t n = 0; n < std::size(lengths); ++n) ExpectRead(n, copies[n], true, lengths[n]);
}

TEST_F(ExposedCopiesTest, WhatLeavesDramIsCalledForAndIsThereAgainWhenItIsBack) {
  Start();
  const Copy copy = Put(1);
  ASSERT_TRUE(Exposed(1));
  ASSERT_TRUE(holder_->WriteBackAll().ok());
  iouring::SlotId slot = 0;
  slots_->ForEach([&](iouring::SlotId id, iouring::SlotRecord&) { slot = id; });
  ASSERT_TRUE(Eventually([&] { return holder_->TryEvict(slot); }));
  ASSERT_TRUE(Exposed(0));
  ExpectRead(1, copy, false);  // from NVMe, into a slot
  ASSERT_TRUE(Exposed(1));
  ExpectRead(1, copy, true);
}

TEST_F(ExposedCopiesTest, AHolderThatBeganAnewIsFoundAgain) {
  Start();
  const Copy copy = Put(1);
  ASSERT_TRUE(Exposed(1));
  ExpectRead(1, copy, true);
  Kill();
  Start();
  // Its slot outlived it, and is checked by the first who asks.
  ASSERT_TRUE(Eventually([&] {
    const Got got = Read(copy);
    EXPECT_TRUE(got.code != Code::kOk || got.bytes == BytesOf(1));
    return got.code == Code::kOk && got.one_sided;
  }));
}

TEST_F(ExposedCopiesTest, WhereLockedMemoryIsShortTheRestGoesByCalls) {
  if (rdma::TestsVerbs()) GTEST_SKIP() << "a transport around one over TCP";
  Start(false);
  // The table and three slots.
  NarrowTransport narrow(server_.get(), (256 * meta::kSlotHeaderBytes << 1) + 3 * kLength);
  holder_->ExposeBy(&narrow);
  std::vector<Copy> copies;
  for (uint64_t n = 0; n < 8; ++n) copies.push_back(Put(n));
  ASSERT_TRUE(Exposed(3));
  EXPECT_EQ(narrow.asked(), 1 + 3 + 1) << "after the first refusal nobody is bothered again";
  for (uint64_t n = 0; n < 8; ++n) ExpectRead(n, copies[n], n < 3);
  holder_->ExposeBy(nullptr);
  for (uint64_t n = 0; n < 8; ++n) ExpectRead(n, copies[n], false);
}

// Copies come and go while they are read: never other bytes than theirs.
TEST_F(ExposedCopiesTest, AWriterThatFreesWhatIsReadMakesMissesOnly) {
  nvme_bytes_ = 0;
  may_break_ = true;
  Start();
  constexpr uint64_t kBlocks = 6;
  const Copy stays = Put(100);
  Mutex mutex;
  std::map<uint64_t, Copy> now;  // by block
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    std::mt19937_64 random(1);
    while (!stop) {
      const uint64_t n = random() % kBlocks;
      std::optional<Copy> gone;
      {
        const MutexLock lock(mutex);
        if (const auto at = now.find(n); at != now.end()) gone = at->second;
      }
      if (gone) holder_->Free(gone->first, gone->second);
      const Copy copy = Put(n);
      const MutexLock lock(mutex);
      now[n] = copy;
    }
  });
  std::mt19937_64 random(2);
  uint64_t one_sided = 0, called = 0, missed = 0;
  while (one_sided + called + missed < 2000 || one_sided == 0) {
    const uint64_t n = random() % kBlocks;
    std::optional<Copy> copy;
    {
      const MutexLock lock(mutex);
      if (const auto at = now.find(n); at != now.end()) copy = at->second;
    }
    if (!copy) continue;
    const Got got = Read(*copy);
    if (got.code == Code::kOk) {
      ASSERT_EQ(got.bytes, BytesOf(n));
      (got.one_sided ? one_sided : called) += 1;
    } else {
      ++missed;
    }
  }
  stop = true;
  writer.join();
  ASSERT_TRUE(Eventually([&] { return holder_->Count().exposed.waiting_slots == 0; }));
  std::printf("%llu one-sided, %llu called for, %llu missed\n",
              static_cast<unsigned long long>(one_sided), static_cast<unsigned long long>(called),
              static_cast<unsigned long long>(missed));
  const Got got = Read(stays);
  EXPECT_EQ(got.code, Code::kOk);
  EXPECT_EQ(got.bytes, BytesOf(100));
}

}  // namespace
}  // namespace kvcfs::fs
