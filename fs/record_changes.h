// The inodes that one call on names changes: their records go into one batch, and into memory when
// it is written.
//
// The attr locks of all nodes that may change are held from the beginning to the end, so that the
// newest record of an inode is also the last one written.
// Threads: under the lock of all names, which alone may hold several attr locks at once. They are
//   taken in the order of inode numbers.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <mutex>
#include <utility>
#include <vector>

#include "base/log.h"
#include "fs/inode_table.h"

namespace kvcfs::fs {

class RecordChanges {
 public:
  // The nodes that may change. Null ones are passed over, and one may stand twice.
  RecordChanges(NameStore& store, std::initializer_list<NodeRef> nodes) KVC_NO_ANALYSIS
      : store_(store) {
    changes_.reserve(nodes.size());  // references to records stay
    for (const NodeRef& node : nodes) {
      if (node != nullptr && FindChange(node) == nullptr) changes_.emplace_back().node = node;
    }
    std::sort(changes_.begin(), changes_.end(),
              [](const Change& a, const Change& b) { return a.node->ino < b.node->ino; });
    for (Change& change : changes_)
      change.lock = std::unique_lock<std::mutex>(change.node->attr.native());
  }
  RecordChanges(const RecordChanges&) = delete;
  RecordChanges& operator=(const RecordChanges&) = delete;

  meta::MetaBatch& batch() { return batch_; }

  // The record as it will be; it is written only if it has been asked for.
  InodeRecord& Of(const NodeRef& node) KVC_NO_ANALYSIS {
    Change* change = FindChange(node);
    KVC_CHECK(change != nullptr);
    if (!change->changed) change->next = node->record;
    change->changed = true;
    return change->next;
  }
  // The inode goes.
  void Delete(const NodeRef& node) {
    (void)Of(node);
    FindChange(node)->deleted = true;
  }

  // One batch. In memory only if that worked. `removed` is told of each deleted node, under its
  // lock.
  template <typename F>
  FsStatus Write(F&& removed) KVC_NO_ANALYSIS {
    for (const Change& change : changes_) {
      if (!change.changed) continue;
      if (change.deleted) {
        store_.DeleteInode(batch_, change.node->ino, change.next);
      } else {
        store_.PutInode(batch_, change.node->ino, change.next);
      }
    }
    const FsStatus written = store_.Write(batch_);
    if (!written) return written;
    for (Change& change : changes_) {
      if (!change.changed) continue;
      change.node->record = change.next;
      change.node->attr_dirty = false;
      if (change.deleted) removed(*change.node);
    }
    return {};
  }
  FsStatus Write() {
    return Write([](FileNode&) {});
  }

 private:
  struct Change {
    NodeRef node;
    std::unique_lock<std::mutex> lock;
    InodeRecord next;
    bool changed = false;
    bool deleted = false;
  };

  Change* FindChange(const NodeRef& node) {
    const auto found = std::find_if(changes_.begin(), changes_.end(),
                                    [&](const Change& change) { return change.node == node; });
    return found == changes_.end() ? nullptr : &*found;
  }

  NameStore& store_;
  meta::MetaBatch batch_;
  std::vector<Change> changes_;
};

}  // namespace kvcfs::fs
