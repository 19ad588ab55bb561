// What requests do to a namespace's names, without a network: each is applied to records in a real
// MetaStore.
#include "meta/name_table.h"

#include <filesystem>

#include <gtest/gtest.h>
#include <sys/stat.h>

namespace kvcfs::meta {
namespace {

constexpr SpaceId kSpace{0x11, 0x22};

class NameTableTest : public testing::Test {
 protected:
  void SetUp() override {
    char directory[] = "/tmp/kvc-names-XXXXXX";
    ASSERT_NE(::mkdtemp(directory), nullptr);
    directory_ = directory;
    MetaOpenReport report;
    auto store = MetaStore::Open({.directory = directory_}, &report);
    ASSERT_TRUE(store.ok()) << store.error().text;
    store_ = std::move(*store);
    table_ = std::make_unique<NameTable>(store_.get(), kSpace);
    ASSERT_TRUE(table_->Load().ok());
  }
  void TearDown() override {
    table_.reset();
    store_.reset();
    std::filesystem::remove_all(directory_);
  }

  static NameRequest Request(NameOp op, const FileId& directory, const std::string& name) {
    NameRequest request;
    request.space = kSpace;
    request.op = op;
    request.directory = directory;
    request.name = name;
    return request;
  }
  NameReply Do(NameRequest request) {
    if (IsQuestion(request.op)) return table_->Ask(request);
    if (!request.request.valid()) request.request = {7, ++last_request_};
    std::vector<NameRecord> records;
    NameReply reply = table_->Apply(request, now_, &records);
    EXPECT_TRUE(table_->Write(records).ok());
    return reply;
  }
  FileId MakeDirectory(const FileId& parent, const std::string& name) {
    NameRequest request = Request(NameOp::kMake, parent, name);
    request.file.id = {1, ++last_id_};
    request.file.mode = S_IFDIR | 0755;
    EXPECT_EQ(Do(request).error, NameError::kNone) << name;
    return request.file.id;
  }
  NameReply Publish(const std::string& name, const FileId& id, uint64_t content,
                    uint32_t flags = kNameKeep) {
    NameRequest request = Request(NameOp::kPublish, kRootFile, name);
    request.file.id = id;
    request.file.mode = S_IFREG | 0644;
    request.file.content = {2, content};
    request.file.size = content;
    request.flags = flags;
    return Do(request);
  }
  NameReply Rename(const std::string& from, const std::string& to, const FileId& meant = {},
                   uint32_t flags = 0) {
    NameRequest request = Request(NameOp::kRename, kRootFile, from);
    request.to_directory = kRootFile;
    request.to_name = to;
    request.file.id = meant;
    request.flags = flags;
    return Do(request);
  }
  // The content under a name; 0: there is none.
  uint64_t At(const std::string& name, const FileId& directory = kRootFile) {
    return Do(Request(NameOp::kLookup, directory, name)).file.content.low;
  }
  std::vector<std::string> Names(const FileId& directory = kRootFile) {
    NameRequest request = Request(NameOp::kList, directory, "");
    request.limit = 2;
    std::vector<std::string> names;
    for (NameReply page; !page.done;) {
      page = Do(request);
      if (page.error != NameError::kNone || page.code != Code::kOk) break;
      for (const NameEntry& entry : page.entries) {
        names.push_back(entry.name);
        request.cookie = entry.cookie;
      }
    }
    return names;
  }

  int64_t now_ = 1'000'000'000;
  std::string directory_;
  std::unique_ptr<MetaStore> store_;
  std::unique_ptr<NameTable> table_;
  uint64_t last_request_ = 0, last_id_ = 100;
};

TEST_F(NameTableTest, DirectoriesAndTheirNames) {
  const FileId a = MakeDirectory(kRootFile, "a"), b = MakeDirectory(a, "b");
  EXPECT_EQ(Do(Request(NameOp::kRmdir, kRootFile, "a")).error, NameError::kNotEmpty);
  EXPECT_EQ(Do(Request(NameOp::kUnlink, kRootFile, "a")).error, NameError::kIsDirectory);
  EXPECT_EQ(Do(Request(NameOp::kLookup, kRootFile, "a")).file.links, 3u);
  NameRequest again = Request(NameOp::kMake, kRootFile, "a");
  again.file.id = {1, 999};
  EXPECT_EQ(Do(again).error, NameError::kExists);
  // Not below itself.
  NameRequest below = Request(NameOp::kRename, kRootFile, "a");
  below.to_directory = b;
  below.to_name = "c";
  EXPECT_EQ(Do(below).error, NameError::kInvalid);
  NameRequest up = Request(NameOp::kRename, a, "b");
  up.to_directory = kRootFile;
  up.to_name = "c";
  EXPECT_EQ(Do(up).error, NameError::kNone);
  EXPECT_EQ(Names(), (std::vector<std::string>{"a", "c"}));
  EXPECT_EQ(Do(Request(NameOp::kLookup, kRootFile, "a")).file.links, 2u);
  EXPECT_EQ(Do(Request(NameOp::kRmdir, kRootFile, "a")).error, NameError::kNone);
  EXPECT_EQ(Do(Request(NameOp::kLookup, kRootFile, "a")).error, NameError::kNotFound);
  EXPECT_EQ(Do(Request(NameOp::kLookup, a, "b")).error, NameError::kNotFound);
  for (const char* wrong : {"", ".", "..", "x/y"}) {
    NameRequest request = Request(NameOp::kMake, kRootFile, wrong);
    request.file.id = {1, 998};
    EXPECT_EQ(Do(request).error, NameError::kInvalid) << wrong;
  }
}

TEST_F(NameTableTest, VersionsAndReplacing) {
  EXPECT_EQ(Publish("file", {3, 1}, 10).error, NameError::kNone);
  EXPECT_EQ(At("file"), 10u);
  const NameReply second = Publish("file", {3, 1}, 11);
  ASSERT_EQ(second.removed.size(), 1u);
  EXPECT_EQ(second.removed[0].content.low, 10u);
  EXPECT_EQ(At("file"), 11u);
  EXPECT_GT(second.file.change, 1u);
  EXPECT_EQ(Publish("file", {3, 2}, 12, kNameNoReplace).error, NameError::kExists);
  EXPECT_EQ(Publish("file", {3, 2}, 12, 0).removed.size(), 1u);
  EXPECT_EQ(At("file"), 12u);
  // The first is gone for good: it has no name to come back under.
  EXPECT_EQ(Publish("", {3, 1}, 13).error, NameError::kNotFound);
  NameRequest missing = Request(NameOp::kMissing, {}, "");
  missing.file.id = {3, 2};
  missing.file.content = {2, 11};
  EXPECT_EQ(Do(missing).error, NameError::kExists);
  missing.file.content = {2, 12};
  EXPECT_EQ(Do(missing).error, NameError::kNone);
  EXPECT_TRUE(Names().empty());
}

TEST_F(NameTableTest, TheSameRequestIsDoneOnce) {
  NameRequest request = Request(NameOp::kMake, kRootFile, "a");
  request.file.id = {1, 1};
  request.file.mode = S_IFDIR | 0755;
  request.request = {9, 9};
  EXPECT_EQ(Do(request).error, NameError::kNone);
  const uint64_t sequence = table_->state().sequence;
  EXPECT_EQ(Do(request).error, NameError::kNone);
  EXPECT_EQ(table_->state().sequence, sequence);
  request.request = {9, 10};
  EXPECT_EQ(Do(request).error, NameError::kExists);
  // Another table over the same records goes on from there.
  NameTable other(store_.get(), kSpace);
  ASSERT_TRUE(other.Load().ok());
  EXPECT_EQ(other.state().sequence, sequence);
}

TEST_F(NameTableTest, WhoLostATemporaryNameHasItsFileStill) {
  const FileId mine{3, 1}, yours{3, 2};
  // I rename first: what I mean is mine, and the name stays yours.
  Publish("tmp", mine, 10);
  Publish("tmp", yours, 20);
  EXPECT_EQ(At("tmp"), 20u);
  EXPECT_EQ(Rename("tmp", "one", mine).error, NameError::kNone);
  EXPECT_EQ(At("one"), 10u);
  EXPECT_EQ(At("tmp"), 20u);
  EXPECT_EQ(Rename("tmp", "two", yours).error, NameError::kNone);
  EXPECT_EQ(At("two"), 20u);
  EXPECT_EQ(At("tmp"), 0u);
  // You rename first: then the name is mine again.
  const FileId third{3, 3}, fourth{3, 4};
  Publish("tmp", third, 30);
  Publish("tmp", fourth, 40);
  EXPECT_EQ(Rename("tmp", "four", fourth).error, NameError::kNone);
  EXPECT_EQ(At("tmp"), 30u);
  EXPECT_EQ(Rename("tmp", "three", third).error, NameError::kNone);
  EXPECT_EQ(At("three"), 30u);
  EXPECT_EQ(Names(), (std::vector<std::string>{"one", "two", "four", "three"}));
  // Not for ever.
  Publish("tmp", {3, 5}, 50);
  Publish("tmp", {3, 6}, 60);
  now_ += 61'000'000'000;
  EXPECT_EQ(Rename("tmp", "six", {3, 5}).error, NameError::kNone);
  EXPECT_EQ(At("six"), 60u);
  NameRequest get = Request(NameOp::kGet, {}, "");
  get.file.id = {3, 5};
  MakeDirectory(kRootFile, "reaps");
  EXPECT_EQ(Do(get).error, NameError::kNotFound);
}

TEST_F(NameTableTest, LinksAttributesAndXattrs) {
  Publish("file", {3, 1}, 10);
  NameRequest link = Request(NameOp::kLink, kRootFile, "other");
  link.file.id = {3, 1};
  EXPECT_EQ(Do(link).file.links, 2u);
  EXPECT_EQ(Do(link).error, NameError::kExists);
  EXPECT_TRUE(Do(Request(NameOp::kUnlink, kRootFile, "file")).removed.empty());
  EXPECT_EQ(At("other"), 10u);
  NameRequest attr = Request(NameOp::kSetAttr, {}, "");
  attr.file.id = {3, 1};
  attr.file.mode = 0600;
  attr.file.mtime_nanos = 77;
  attr.flags = kNameMode | kNameMtime;
  EXPECT_EQ(Do(attr).file.mode, static_cast<uint32_t>(S_IFREG | 0600));
  NameRequest xattr = Request(NameOp::kSetXattr, {}, "user.b");
  xattr.file.id = {3, 1};
  xattr.value = "value";
  EXPECT_EQ(Do(xattr).error, NameError::kNone);
  const SharedFile file = Do(Request(NameOp::kLookup, kRootFile, "other")).file;
  EXPECT_EQ(file.mtime_nanos, 77);
  ASSERT_EQ(file.xattrs.size(), 1u);
  EXPECT_EQ(file.xattrs[0].second, "value");
  xattr.op = NameOp::kRemoveXattr;
  EXPECT_EQ(Do(xattr).error, NameError::kNone);
  EXPECT_EQ(Do(xattr).error, NameError::kNoAttribute);
  EXPECT_EQ(Do(Request(NameOp::kUnlink, kRootFile, "other")).removed.size(), 1u);
}

TEST_F(NameTableTest, PagesMakeACopy) {
  for (uint64_t i = 0; i < 50; ++i) Publish("file-" + std::to_string(i), {3, i + 1}, i + 1);
  char directory[] = "/tmp/kvc-names-XXXXXX";
  ASSERT_NE(::mkdtemp(directory), nullptr);
  {
    MetaOpenReport report;
    auto store = MetaStore::Open({.directory = directory}, &report);
    ASSERT_TRUE(store.ok());
    NameTable copy(store->get(), kSpace);
    ASSERT_TRUE(copy.Load().ok());
    std::string after;
    int pages = 0;
    for (bool done = false; !done; ++pages) {
      std::vector<NameRecord> records;
      const auto page = table_->Page(after, 1000, &records);
      ASSERT_TRUE(page.ok());
      done = *page;
      if (!records.empty()) after = records.back().key;
      ASSERT_TRUE(copy.Write(records).ok());
    }
    EXPECT_GT(pages, 5);
    ASSERT_TRUE(copy.Load().ok());
    EXPECT_EQ(copy.state().sequence, table_->state().sequence);
    EXPECT_EQ(copy.Ask(Request(NameOp::kLookup, kRootFile, "file-42")).file.content.low, 43u);
    EXPECT_EQ(SpacesWithNames(**store), std::vector<SpaceId>{kSpace});
    ASSERT_TRUE(copy.Clear().ok());
    EXPECT_TRUE(SpacesWithNames(**store).empty());
  }
  std::filesystem::remove_all(directory);
}

TEST(NameMessages, ComeBackAsTheyWere) {
  NameRequest request;
  request.epoch = 5;
  request.space = kSpace;
  request.request = {1, 2};
  request.op = NameOp::kRename;
  request.name = "a";
  request.to_name = std::string(255, 'b');
  request.file.xattrs = {{"user.x", "y"}};
  request.records = {{"key", "value", true}};
  const auto decoded = DecodeNameRequest(Encode(request));
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(Encode(*decoded), Encode(request));
  NameReply reply;
  reply.error = NameError::kNotEmpty;
  reply.entries.push_back({"name", 7, request.file});
  reply.removed.push_back(request.file);
  const rdma::Bytes bytes = Encode(reply);
  ASSERT_TRUE(DecodeNameReply(bytes).ok());
  EXPECT_EQ(Encode(*DecodeNameReply(bytes)), bytes);
  for (size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_FALSE(DecodeNameReply(std::span(bytes).first(length)).ok()) << length;
  }
}

}  // namespace
}  // namespace kvcfs::meta
