// Promises M1-M10 of fs/SEMANTICS.md, through a real mount.
#include <algorithm>
#include <array>
#include <cctype>
#include <cstring>
#include <memory>
#include <sstream>

#include <fmt/format.h>
#include <sys/ioctl.h>

#include "fs/kvcfs.h"
#include "tests/integration/mount_fixture.h"

namespace kvcfs::test {
namespace {

struct Line {
  uint32_t ordinal;
  std::string key, tier;
  uint64_t bytes;
};
struct Answer {
  int64_t count = -1;
  int64_t lease_ms = -1;
  std::vector<Line> lines;
  std::string text;
};

class Match : public MountTest {
 protected:
  Fd OpenMatch() {
    Fd fd = Open(ns().MatchFile(), O_RDWR);
    EXPECT_TRUE(fd.valid()) << ErrnoName(errno);
    return fd;
  }
  static std::string Lines(const std::vector<std::string>& keys) {
    std::string text;
    for (const std::string& key : keys) text += key + "\n";
    return text;
  }
  // Reads until nothing more comes.
  static Answer ReadAnswer(int fd, size_t piece = 65536) {
    Answer answer;
    std::vector<char> buffer(piece);
    while (true) {
      const ssize_t count = ::read(fd, buffer.data(), buffer.size());
      EXPECT_GE(count, 0) << ErrnoName(errno);
      if (count <= 0) break;
      answer.text.append(buffer.data(), static_cast<size_t>(count));
    }
    std::istringstream words(answer.text);
    words >> answer.count >> answer.lease_ms;
    Line line;
    while (words >> line.ordinal >> line.key >> line.tier >> line.bytes) {
      answer.lines.push_back(line);
    }
    EXPECT_TRUE(answer.text.empty() || answer.text.back() == '\n') << answer.text;
    return answer;
  }
  Answer Ask(const std::string& question) {
    const Fd fd = OpenMatch();
    EXPECT_EQ(ErrnoName(WriteAll(fd.get(), question)), "0");
    return ReadAnswer(fd.get());
  }
};
KVC_BOTH_MODES(Match);

// M1: Written keys, one a line, are a question; the first read answers it: `COUNT LEASE_MS`, then
// `ORDINAL KEY TIER BYTES` for each matched block, in order. COUNT is the number of leading keys
// that are cached.
TEST_P(Match, Answers) {
  std::vector<std::string> keys;
  for (uint32_t i = 0; i < 5; ++i) {
    keys.push_back(Key(i));
    ASSERT_EQ(ns().Put(i == 0 ? "" : keys[i - 1], keys[i], Bytes(i, 100 + i)), 0);
  }
  keys.push_back(Key(5));
  keys.push_back(Key(6));
  const Answer answer = Ask(Lines(keys));
  EXPECT_EQ(answer.count, 5);
  EXPECT_EQ(answer.lease_ms, 30000);
  ASSERT_EQ(answer.lines.size(), 5u) << answer.text;
  for (uint32_t i = 0; i < 5; ++i) {
    EXPECT_EQ(answer.lines[i].ordinal, i);
    EXPECT_EQ(answer.lines[i].key, keys[i]);
    EXPECT_EQ(answer.lines[i].tier, "dram");
    EXPECT_EQ(answer.lines[i].bytes, 100u + i);
  }
  EXPECT_EQ(Ask(Lines({keys[0], keys[1]})).count, 2);
  EXPECT_EQ(Ask(Lines({keys[0]})).lines.size(), 1u);
}

// M2: Lines may come in parts, over several writes; the last line may lack its newline.
TEST_P(Match, LinesInParts) {
  const auto keys = ns().PutChain("", 10, 4, 4096);
  const std::string question = Lines(keys);
  for (const size_t piece : {size_t{1}, size_t{7}, size_t{64}, size_t{65}, size_t{100}}) {
    const Fd fd = OpenMatch();
    ASSERT_EQ(ErrnoName(WriteAll(fd.get(), question, piece)), "0") << piece;
    EXPECT_EQ(ReadAnswer(fd.get()).count, 4) << piece;
  }
  EXPECT_EQ(Ask(question.substr(0, question.size() - 1)).count, 4) << "no newline at the end";
  EXPECT_EQ(Ask("!nolease\n" + question.substr(0, question.size() - 1)).count, 4);
}

// M3: Each open is its own conversation, and duplicates share theirs.
TEST_P(Match, EachOpenIsItsOwn) {
  const auto keys = ns().PutChain("", 20, 3, 4096);
  const Fd one = OpenMatch(), two = OpenMatch();
  const Fd copy(::dup(one.get()));
  ASSERT_EQ(WriteAll(one.get(), keys[0] + "\n"), 0);
  ASSERT_EQ(WriteAll(two.get(), Lines(keys)), 0);
  ASSERT_EQ(WriteAll(copy.get(), keys[1] + "\n"), 0);
  EXPECT_EQ(ReadAnswer(one.get()).count, 2);
  EXPECT_EQ(ReadAnswer(two.get()).count, 3);
  EXPECT_EQ(ReadAnswer(copy.get()).text, "") << "it was read through its duplicate";
}

// M3: Offsets are ignored: pread and pwrite at any offset do the same.
TEST_P(Match, OffsetsAreIgnored) {
  const auto keys = ns().PutChain("", 30, 2, 4096);
  const Fd fd = OpenMatch();
  const std::string first = keys[0] + "\n", second = keys[1] + "\n";
  ASSERT_EQ(::pwrite(fd.get(), first.data(), first.size(), 1000000), 65);
  ASSERT_EQ(::pwrite(fd.get(), second.data(), second.size(), 0), 65);
  std::array<char, 4096> buffer{};
  ASSERT_GT(::pread(fd.get(), buffer.data(), buffer.size(), 5), 0) << ErrnoName(errno);
  EXPECT_EQ(std::string(buffer.data()).rfind("2 30000\n", 0), 0u) << buffer.data();
}

// M4: The write after an answer begins a new question.
TEST_P(Match, ASecondQuestion) {
  const auto keys = ns().PutChain("", 40, 3, 4096);
  const Fd fd = OpenMatch();
  ASSERT_EQ(WriteAll(fd.get(), Lines({keys[0]})), 0);
  EXPECT_EQ(ReadAnswer(fd.get()).count, 1);
  ASSERT_EQ(WriteAll(fd.get(), Lines(keys)), 0);
  EXPECT_EQ(ReadAnswer(fd.get()).count, 3);
  // Even when only a part of the answer was taken.
  ASSERT_EQ(WriteAll(fd.get(), Lines(keys)), 0);
  std::array<char, 4> part{};
  ASSERT_GT(::read(fd.get(), part.data(), part.size()), 0);
  ASSERT_EQ(WriteAll(fd.get(), Lines({keys[0], keys[1]})), 0);
  const Answer answer = ReadAnswer(fd.get());
  EXPECT_EQ(answer.count, 2);
  EXPECT_EQ(answer.lines.size(), 2u);
  // Options hold for their own question only.
  ASSERT_EQ(WriteAll(fd.get(), "!nolease\n" + Lines(keys)), 0);
  EXPECT_EQ(ReadAnswer(fd.get()).lease_ms, 0);
  ASSERT_EQ(WriteAll(fd.get(), Lines(keys)), 0);
  EXPECT_EQ(ReadAnswer(fd.get()).lease_ms, 30000);
}

// M5: Lines that begin with `!` are options: `!prefetch`, `!nolease` (then LEASE_MS is 0).
TEST_P(Match, Options) {
  const auto keys = ns().PutChain("", 50, 3, 4096);
  EXPECT_EQ(Ask("!nolease\n" + Lines(keys)).lease_ms, 0);
  EXPECT_EQ(Ask("!nolease\n" + Lines(keys)).count, 3);
  EXPECT_EQ(Ask("!prefetch\n" + Lines(keys)).count, 3);
  EXPECT_EQ(Ask("!prefetch\n!nolease\n" + Lines(keys)).count, 3);
  EXPECT_EQ(Ask(keys[0] + "\n!nolease\n" + keys[1] + "\n").lease_ms, 0) << "anywhere among them";
}

// M6: A malformed key or an unknown option is EINVAL at that write, and the conversation can go on.
TEST_P(Match, Malformed) {
  const auto keys = ns().PutChain("", 60, 2, 4096);
  std::string upper = keys[0];
  for (char& c : upper) c = static_cast<char>(std::toupper(c));
  for (const std::string& bad :
       {std::string("short"), keys[0].substr(1), keys[0] + "0", upper, keys[0].substr(1) + "g",
        std::string("!unknown"), keys[0] + " ", std::string(70, 'z')}) {
    const Fd fd = OpenMatch();
    const std::string line = bad + "\n";
    EXPECT_ERRNO(EINVAL, ::write(fd.get(), line.data(), line.size())) << bad;
    ASSERT_EQ(WriteAll(fd.get(), Lines(keys)), 0) << bad;
    EXPECT_EQ(ReadAnswer(fd.get()).count, 2) << bad;
  }
  const Fd fd = OpenMatch();
  ASSERT_EQ(WriteAll(fd.get(), Lines({keys[0]})), 0);
  EXPECT_ERRNO(EINVAL, ::write(fd.get(), "bad\n", 4));
}

// M7: A question without keys, or whose first key is not cached, is answered with 0.
TEST_P(Match, NothingMatches) {
  const auto keys = ns().PutChain("", 70, 2, 4096);
  const Answer answer = Ask(Lines({Key(999), keys[0]}));
  EXPECT_EQ(answer.count, 0);
  EXPECT_TRUE(answer.lines.empty());
  EXPECT_EQ(Ask("!nolease\n").count, 0);
  const Fd fd = OpenMatch();
  EXPECT_LE(ReadAnswer(fd.get()).count, 0) << "nothing was asked";
}

// M7: Keys match as far as each extends the one before. A question may begin in the middle of a
// chain.
TEST_P(Match, KeysMustFormAChain) {
  const auto one = ns().PutChain("", 80, 3, 4096);
  const auto two = ns().PutChain("", 90, 3, 4096);
  EXPECT_EQ(Ask(Lines({one[0], one[1], two[2]})).count, 2);
  EXPECT_EQ(Ask(Lines({one[0], two[1], one[1]})).count, 1);
  EXPECT_EQ(Ask(Lines({one[0], one[2]})).count, 1);
  const Answer middle = Ask(Lines({one[1], one[2]}));
  EXPECT_EQ(middle.count, 2);
  ASSERT_EQ(middle.lines.size(), 2u);
  EXPECT_EQ(middle.lines[0].ordinal, 1u) << "the ordinal is the block's own";
  EXPECT_EQ(Ask(Lines({one[0], one[0]})).count, 1);
}

// M8: Thousands of keys may be asked at once, and the answer read in parts.
TEST_P(Match, ManyKeys) {
  const auto keys = ns().PutChain("", 1000, 600, 64);
  std::vector<std::string> asked = keys;
  for (uint64_t i = 0; i < 4400; ++i) asked.push_back(Key(100000 + i));
  const Fd fd = OpenMatch();
  ASSERT_EQ(ErrnoName(WriteAll(fd.get(), Lines(asked))), "0");
  const Answer answer = ReadAnswer(fd.get(), 1000);
  EXPECT_EQ(answer.count, 600);
  ASSERT_EQ(answer.lines.size(), 600u);
  for (uint32_t i = 0; i < 600; ++i) {
    EXPECT_EQ(answer.lines[i].ordinal, i);
    EXPECT_EQ(answer.lines[i].key, keys[i]);
  }
}

std::array<uint8_t, 32> Binary(const std::string& hex) {
  std::array<uint8_t, 32> bytes{};
  for (size_t i = 0; i < 32; ++i) {
    bytes[i] = static_cast<uint8_t>(std::stoul(hex.substr(2 * i, 2), nullptr, 16));
  }
  return bytes;
}

// M9: The ioctl on the namespace directory (C header `kvcfs.h`) carries up to 511 keys and answers
// the count, the lease and a tier for each.
TEST_P(Match, Ioctl) {
  const auto keys = ns().PutChain("", 2000, 520, 100);
  const Fd directory = Open(ns().path(), O_RDONLY | O_DIRECTORY);
  const auto ask = [&](uint32_t count, uint32_t flags, kvcfs_match& match) {
    match = {};
    match.request.count = count;
    match.request.flags = flags;
    for (uint32_t i = 0; i < std::min<uint32_t>(count, KVCFS_MATCH_KEYS_MAX); ++i) {
      const auto key = Binary(keys[i]);
      std::memcpy(match.request.keys[i], key.data(), key.size());
    }
    return ::ioctl(directory.get(), KVCFS_IOC_MATCH, &match);
  };
  const auto match = std::make_unique<kvcfs_match>();
  ASSERT_OK(ask(511, 0, *match));
  EXPECT_EQ(match->reply.count, 511u);
  EXPECT_EQ(match->reply.lease_ms, 30000u);
  for (uint32_t i = 0; i < 511; ++i) {
    EXPECT_EQ(match->reply.tiers[i], KVCFS_TIER_DRAM) << i;
    EXPECT_EQ(match->reply.bytes[i], 100u) << i;
  }
  ASSERT_OK(ask(1, KVCFS_MATCH_NOLEASE, *match));
  EXPECT_EQ(match->reply.count, 1u);
  EXPECT_EQ(match->reply.lease_ms, 0u);
  ASSERT_OK(ask(3, KVCFS_MATCH_PREFETCH, *match));
  EXPECT_EQ(match->reply.count, 3u);
  ASSERT_OK(::unlink(ns().ByKey(keys[2]).c_str()));
  ASSERT_OK(ask(5, 0, *match));
  EXPECT_EQ(match->reply.count, 2u);
  ASSERT_OK(::unlink(ns().ByKey(keys[0]).c_str()));
  ASSERT_OK(ask(5, 0, *match));
  EXPECT_EQ(match->reply.count, 0u) << "nothing cached is no error";
  EXPECT_ERRNO(EINVAL, ask(0, 0, *match));
  EXPECT_ERRNO(EINVAL, ask(512, 0, *match));
  EXPECT_ERRNO(EINVAL, ask(1, 1u << 31, *match));
  // Only a namespace directory answers it.
  const Fd files = Open(ns().Files(), O_RDONLY | O_DIRECTORY);
  EXPECT_ERRNO(ENOTTY, ::ioctl(files.get(), KVCFS_IOC_MATCH, match.get()));
}

// M10: `kvcfs lookup MNT/NS KEY...`, `--keys-file` and `-` ask the same.
TEST_P(Match, LookupCommand) {
  const auto keys = ns().PutChain("", 300, 3, 4096);
  std::vector<std::string> words{KVC_COMMAND, "lookup", ns().path()};
  words.insert(words.end(), keys.begin(), keys.end());
  words.push_back(Key(399));
  const CommandResult plain = RunCommand(words);
  EXPECT_EQ(plain.status, 0) << plain.err;
  EXPECT_NE(plain.out.find('3'), std::string::npos) << plain.out;
  words.insert(words.begin() + 2, "--json");
  const CommandResult json = RunCommand(words);
  EXPECT_EQ(json.status, 0) << json.err;
  EXPECT_EQ(json.out.front(), '{') << json.out;
  const CommandResult from_stdin =
      RunCommand({KVC_COMMAND, "lookup", ns().path(), "-"}, Lines(keys));
  EXPECT_EQ(from_stdin.status, 0) << from_stdin.err;
  const TemporaryDirectory scratch;
  ASSERT_EQ(WriteFile(scratch.path() + "/keys", Lines(keys)), 0);
  const CommandResult from_file =
      RunCommand({KVC_COMMAND, "lookup", ns().path(), "--keys-file", scratch.path() + "/keys"});
  EXPECT_EQ(from_file.status, 0) << from_file.err;
  EXPECT_EQ(from_file.out, from_stdin.out);
  EXPECT_EQ(RunCommand({KVC_COMMAND, "lookup", ns().path(), "short"}).status, 2);
}

}  // namespace
}  // namespace kvcfs::test
