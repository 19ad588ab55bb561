// The inodes that one call on names changes: their records go into one batch, and into memory when
// it is written.
//
// Each node's attr lock is held from its first mention until the end, so that the newest record of
// an inode is also the last one written.
// Threads: under the lock of all names, which alone may hold several attr locks at once.
#pragma once

#include <deque>
#include <mutex>
#include <utility>

#include "fs/inode_table.h"

namespace kvcfs::fs {

class RecordChanges {
 public:
  explicit RecordChanges(NameStore& store) : store_(store) {}
  RecordChanges(const RecordChanges&) = delete;
  RecordChanges& operator=(const RecordChanges&) = delete;

  meta::MetaBatch& batch() { return batch_; }

  // The record as it will be; the first mention copies it.
  InodeRecord& Of(const NodeRef& node) KVC_NO_ANALYSIS {
    for (Change& change : changes_) {
      if (change.node == node) return change.next;
    }
    std::unique_lock<std::mutex> lock(node->attr.native());
    changes_.push_back({node, std::move(lock), node->record, false});
    return changes_.back().next;
  }
  // The inode goes (Of was called).
  void Delete(const NodeRef& node) {
    for (Change& change : changes_) {
      if (change.node == node) change.deleted = true;
    }
  }

  // One batch. In memory only if that worked. `removed` is told of each deleted node, under its
  // lock.
  template <typename F>
  FsStatus Write(F&& removed) KVC_NO_ANALYSIS {
    for (const Change& change : changes_) {
      if (change.deleted) {
        store_.DeleteInode(batch_, change.node->ino, change.next);
      } else {
        store_.PutInode(batch_, change.node->ino, change.next);
      }
    }
    const FsStatus written = store_.Write(batch_);
    if (!written) return written;
    for (Change& change : changes_) {
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
    bool deleted = false;
  };

  NameStore& store_;
  meta::MetaBatch batch_;
  std::deque<Change> changes_;  // references to records stay
};

}  // namespace kvcfs::fs
