#include "fs/inode_table.h"

#include <vector>

namespace kvcfs::fs {

FsResult<NodeRef> InodeTable::Find(Ino ino) {
  if (NodeRef node = Peek(ino)) return node;
  Shard& shard = ShardOf(ino);
  MutexLock loading(shard.loading);
  if (NodeRef node = Peek(ino)) return node;
  FsResult<std::optional<InodeRecord>> record = names_.GetInode(ino);
  if (!record) return Fail(record.error().value);
  if (!*record) return NodeRef();
  auto node = std::make_shared<FileNode>(ino);
  {
    MutexLock lock(node->attr);
    node->record = std::move(**record);
    node->slot = SlotOf(ino);
  }
  Insert(node);
  return node;
}

NodeRef InodeTable::Peek(Ino ino) {
  Shard& shard = ShardOf(ino);
  MutexLock lock(shard.mutex);
  const auto found = shard.nodes.find(ino);
  if (found == shard.nodes.end()) return nullptr;
  shard.order.splice(shard.order.end(), shard.order, found->second.position);
  return found->second.node;
}

void InodeTable::Insert(const NodeRef& node) {
  Shard& shard = ShardOf(node->ino);
  MutexLock lock(shard.mutex);
  const auto position = shard.order.insert(shard.order.end(), node->ino);
  if (!shard.nodes.emplace(node->ino, Place{node, position}).second) {
    shard.order.erase(position);
    return;
  }
  ++size_;
  Shrink(shard);
}

void InodeTable::Remove(Ino ino) {
  Shard& shard = ShardOf(ino);
  MutexLock lock(shard.mutex);
  const auto found = shard.nodes.find(ino);
  if (found == shard.nodes.end()) return;
  shard.order.erase(found->second.position);
  shard.nodes.erase(found);
  --size_;
}

void InodeTable::SetSlot(Ino ino, iouring::SlotId slot) {
  Shard& shard = ShardOf(ino);
  MutexLock lock(shard.mutex);
  if (slot == 0) {
    shard.slots.erase(ino);
  } else {
    shard.slots[ino] = slot;
  }
}

iouring::SlotId InodeTable::SlotOf(Ino ino) {
  Shard& shard = ShardOf(ino);
  MutexLock lock(shard.mutex);
  const auto found = shard.slots.find(ino);
  return found == shard.slots.end() ? 0 : found->second;
}

void InodeTable::Shrink(Shard& shard) KVC_NO_ANALYSIS {
  // A few at a time: an insert pays for itself. Nobody can get a node while we hold its shard, so
  // one whose only reference is ours is idle.
  constexpr int kLooks = 8;
  for (int look = 0; look < kLooks && shard.nodes.size() > nodes_max_ / kShards; ++look) {
    const Ino ino = shard.order.front();
    const auto found = shard.nodes.find(ino);
    FileNode& node = *found->second.node;
    bool idle = found->second.node.use_count() == 1;
    if (idle) {
      const std::unique_lock<std::mutex> lock(node.attr.native(), std::try_to_lock);
      idle = lock.owns_lock() && !node.attr_dirty && !node.gone && !node.queued &&
             !node.in_flight && node.file == nullptr;
    }
    if (!idle) {
      shard.order.splice(shard.order.end(), shard.order, found->second.position);
      continue;
    }
    shard.order.erase(found->second.position);
    shard.nodes.erase(found);
    --size_;
  }
}

void InodeTable::ForEach(const std::function<void(const NodeRef&)>& visit) {
  for (Shard& shard : shards_) {
    std::vector<NodeRef> nodes;
    {
      MutexLock lock(shard.mutex);
      nodes.reserve(shard.nodes.size());
      for (const auto& [ino, place] : shard.nodes) nodes.push_back(place.node);
    }
    for (const NodeRef& node : nodes) visit(node);
  }
}

}  // namespace kvcfs::fs
