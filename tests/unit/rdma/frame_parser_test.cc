// A stream of frames comes out the same however it is cut; a damaged one ends, and takes no memory.
#include "rdma/frame_parser.h"

#include <algorithm>
#include <cstring>
#include <random>

#include <gtest/gtest.h>

namespace kvcfs::rdma {
namespace {

struct Seen {
  FrameHeader header;
  Bytes head, bulk;
  friend bool operator==(const Seen&, const Seen&) = default;
};

class Collector final : public FrameSink {
 public:
  Result<std::span<std::byte>> PlaceBulk(const FrameHeader& header,
                                         std::span<const std::byte> /*head*/) override {
    if (refuse_bulk) return Error{Code::kDenied, "no bulk here"};
    if (read_over) return std::span<std::byte>();
    place_ = Bytes(header.bulk_bytes);
    return std::span(place_);
  }
  Status OnFrame(const FrameHeader& header, Bytes head, std::span<std::byte> bulk) override {
    EXPECT_EQ(head.size(), header.head_bytes);
    EXPECT_TRUE(read_over || bulk.size() == header.bulk_bytes);
    seen.push_back({header, std::move(head), {bulk.begin(), bulk.end()}});
    if (refuse_frames) return Error{Code::kInvalid, "not now"};
    return {};
  }

  std::vector<Seen> seen;
  bool refuse_bulk = false, read_over = false, refuse_frames = false;

 private:
  Bytes place_;
};

void Append(Bytes& stream, FrameHeader header, size_t head, size_t bulk, uint8_t fill) {
  const Bytes body(head, std::byte{fill});
  header.bulk_bytes = static_cast<uint32_t>(bulk);
  const HeaderBytes bytes = EncodeHeader(header, body);
  stream.insert(stream.end(), bytes.begin(), bytes.end());
  stream.insert(stream.end(), body.begin(), body.end());
  stream.insert(stream.end(), bulk, std::byte(fill + 1));
}

Bytes SomeStream() {
  Bytes stream;
  Append(stream, {.kind = FrameKind::kPing, .request_id = 1}, 0, 0, 0);
  Append(stream, {.kind = FrameKind::kCall, .method = 3, .request_id = 2}, 10, 0, 7);
  Append(stream, {.kind = FrameKind::kCall, .method = 4, .request_id = 3}, 5, 40, 9);
  Append(stream, {.kind = FrameKind::kReadReply, .request_id = 4}, 0, 64, 11);
  Append(stream, {.kind = FrameKind::kRead, .request_id = 5}, kSpanBytes, 0, 13);
  return stream;
}

std::vector<Seen> Whole(const Bytes& stream) {
  Collector collector;
  FrameParser parser({}, &collector);
  EXPECT_TRUE(parser.Feed(stream).ok());
  EXPECT_TRUE(parser.idle());
  return collector.seen;
}

TEST(FrameParser, FramesComeOut) {
  const auto seen = Whole(SomeStream());
  ASSERT_EQ(seen.size(), 5u);
  EXPECT_EQ(seen[0].header.kind, FrameKind::kPing);
  EXPECT_EQ(seen[1].head, Bytes(10, std::byte{7}));
  EXPECT_EQ(seen[2].header.method, 4);
  EXPECT_EQ(seen[2].bulk, Bytes(40, std::byte{10}));
  EXPECT_EQ(seen[3].bulk, Bytes(64, std::byte{12}));
  EXPECT_EQ(seen[4].header.request_id, 5u);
}

TEST(FrameParser, EachSplitInTwoGivesTheSame) {
  const Bytes stream = SomeStream();
  const auto whole = Whole(stream);
  for (size_t cut = 0; cut <= stream.size(); ++cut) {
    Collector collector;
    FrameParser parser({}, &collector);
    ASSERT_TRUE(parser.Feed(std::span(stream).first(cut)).ok());
    ASSERT_TRUE(parser.Feed(std::span(stream).subspan(cut)).ok());
    ASSERT_EQ(collector.seen, whole) << cut;
  }
}

TEST(FrameParser, ByteByByteStraightIntoItsTarget) {
  const Bytes stream = SomeStream();
  Collector collector;
  FrameParser parser({}, &collector);
  for (const std::byte byte : stream) {
    ASSERT_FALSE(parser.Target().empty());
    parser.Target()[0] = byte;
    ASSERT_TRUE(parser.Advance(1).ok());
  }
  EXPECT_EQ(collector.seen, Whole(stream));
}

TEST(FrameParser, RandomSplitsAndTargetsMixed) {
  const uint32_t seed = static_cast<uint32_t>(testing::UnitTest::GetInstance()->random_seed());
  SCOPED_TRACE(testing::Message() << "--gtest_random_seed=" << seed);
  std::mt19937 random(seed);
  const Bytes stream = SomeStream();
  const auto whole = Whole(stream);
  for (int round = 0; round < 2000; ++round) {
    Collector collector;
    FrameParser parser({}, &collector);
    for (size_t at = 0; at < stream.size();) {
      const size_t piece = std::min<size_t>(1 + random() % 70, stream.size() - at);
      if (random() % 2 == 0) {
        ASSERT_TRUE(parser.Feed(std::span(stream).subspan(at, piece)).ok());
        at += piece;
        continue;
      }
      const auto target = parser.Target();
      const size_t now = std::min(piece, target.size());
      std::memcpy(target.data(), stream.data() + at, now);
      ASSERT_TRUE(parser.Advance(now).ok());
      at += now;
    }
    ASSERT_EQ(collector.seen, whole);
  }
}

TEST(FrameParser, BulkLandsWhereTheSinkSays) {
  Bytes stream;
  Append(stream, {.kind = FrameKind::kReply, .request_id = 9}, 3, 100, 1);
  Collector collector;
  FrameParser parser({}, &collector);
  ASSERT_TRUE(parser.Feed(std::span(stream).first(kHeaderBytes + 3 + 10)).ok());
  EXPECT_TRUE(parser.receiving_bulk());
  EXPECT_EQ(parser.header().request_id, 9u);
  EXPECT_EQ(parser.wanted(), 90u);
  EXPECT_EQ(parser.Target().size(), 90u);
}

TEST(FrameParser, BulkThatNobodyWantsIsReadOver) {
  Bytes stream;
  Append(stream, {.kind = FrameKind::kCall, .request_id = 1}, 3, 300'000, 1);
  Append(stream, {.kind = FrameKind::kPing, .request_id = 2}, 0, 0, 1);
  Collector collector;
  collector.read_over = true;
  FrameParser parser({}, &collector);
  ASSERT_TRUE(parser.Feed(stream).ok());
  ASSERT_EQ(collector.seen.size(), 2u);
  EXPECT_TRUE(collector.seen[0].bulk.empty());
  EXPECT_EQ(collector.seen[1].header.request_id, 2u);
}

TEST(FrameParser, BulkMayBeDroppedInTheMiddle) {
  Bytes stream;
  Append(stream, {.kind = FrameKind::kReply, .request_id = 1}, 0, 1000, 1);
  Append(stream, {.kind = FrameKind::kPong, .request_id = 2}, 0, 0, 1);
  Collector collector;
  FrameParser parser({}, &collector);
  ASSERT_TRUE(parser.Feed(std::span(stream).first(kHeaderBytes + 500)).ok());
  parser.DropBulk();
  EXPECT_FALSE(parser.receiving_bulk());
  collector.read_over = true;
  ASSERT_TRUE(parser.Feed(std::span(stream).subspan(kHeaderBytes + 500)).ok());
  ASSERT_EQ(collector.seen.size(), 2u);
  EXPECT_TRUE(collector.seen[0].bulk.empty());
}

TEST(FrameParser, HostileLengthsTakeNoMemory) {
  for (const bool bulk : {false, true}) {
    // A header that is right in itself, with a length from a peer with other limits.
    const Bytes head(bulk ? 0 : 2000);
    const HeaderBytes bytes =
        EncodeHeader({.kind = FrameKind::kCall, .bulk_bytes = bulk ? 0xffffffffu : 0u}, head);
    Collector collector;
    FrameParser parser({.head_bytes_max = 1000, .bulk_bytes_max = 1 << 20}, &collector);
    EXPECT_EQ(parser.Feed(bytes).code(), Code::kTooLarge);
    EXPECT_TRUE(parser.Target().empty());
    EXPECT_FALSE(parser.ok());
    EXPECT_TRUE(collector.seen.empty());
  }
}

TEST(FrameParser, AnEndIsForGood) {
  Bytes stream(kHeaderBytes, std::byte{'G'});
  Collector collector;
  FrameParser parser({}, &collector);
  EXPECT_EQ(parser.Feed(stream).code(), Code::kCorrupt);
  EXPECT_EQ(parser.Feed(SomeStream()).code(), Code::kCorrupt);
  EXPECT_TRUE(collector.seen.empty());
}

TEST(FrameParser, TheSinkMayEndIt) {
  const Bytes stream = SomeStream();
  Collector no_bulk;
  no_bulk.refuse_bulk = true;
  FrameParser first({}, &no_bulk);
  EXPECT_EQ(first.Feed(stream).code(), Code::kDenied);
  EXPECT_EQ(no_bulk.seen.size(), 2u);
  Collector nothing;
  nothing.refuse_frames = true;
  FrameParser second({}, &nothing);
  EXPECT_EQ(second.Feed(stream).code(), Code::kInvalid);
  EXPECT_EQ(nothing.seen.size(), 1u);
}

TEST(FrameParser, ADamagedHeadIsSeen) {
  Bytes stream;
  Append(stream, {.kind = FrameKind::kCall}, 100, 0, 1);
  stream[kHeaderBytes + 50] ^= std::byte{1};
  Collector collector;
  FrameParser parser({}, &collector);
  EXPECT_EQ(parser.Feed(stream).code(), Code::kCorrupt);
  EXPECT_TRUE(collector.seen.empty());
}

TEST(FrameParser, RandomMutationsGiveAPrefixOfTheTruth) {
  const uint32_t seed = static_cast<uint32_t>(testing::UnitTest::GetInstance()->random_seed());
  SCOPED_TRACE(testing::Message() << "--gtest_random_seed=" << seed);
  std::mt19937 random(seed);
  const Bytes good = SomeStream();
  const auto whole = Whole(good);
  for (int round = 0; round < 5000; ++round) {
    Bytes stream = good;
    for (uint32_t change = 0; change <= random() % 3; ++change) {
      const size_t at = random() % stream.size();
      switch (random() % 3) {
        case 0:
          stream[at] ^= std::byte(1 << random() % 8);
          break;
        case 1:
          stream.erase(stream.begin() + static_cast<ptrdiff_t>(at));
          break;
        case 2:
          stream.insert(stream.begin() + static_cast<ptrdiff_t>(at), std::byte{1});
          break;
      }
    }
    Collector collector;
    FrameParser parser({}, &collector);
    const Status status = parser.Feed(stream);
    // Headers and heads are as they were sent, or the stream has ended. Bulk has no sum here.
    ASSERT_LE(collector.seen.size(), whole.size());
    for (size_t i = 0; i < collector.seen.size(); ++i) {
      ASSERT_EQ(collector.seen[i].header, whole[i].header);
      ASSERT_EQ(collector.seen[i].head, whole[i].head);
    }
    ASSERT_EQ(!status.ok(), parser.Target().empty());
  }
}

}  // namespace
}  // namespace kvcfs::rdma
