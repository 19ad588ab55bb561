// The thread that makes segments free: erases what is empty, moves what is wanted, asks for less.
//
// Threads: one of its own.
// Memory: copies of what is being moved, at most kMoveBytesMax and one entry.
// Fails: moves that cannot be written leave the victim as it is.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <thread>

#include "base/mutex.h"
#include "iouring/block_device.h"
#include "iouring/segment_book.h"
#include "iouring/segment_contents.h"
#include "iouring/segment_reader.h"
#include "iouring/segment_writer.h"

namespace kvcfs::iouring {

class SegmentReclaimer {
 public:
  SegmentReclaimer(BlockDevice& device, SegmentBook& book, SegmentReader& reader,
                   SegmentWriter& writer, const Uuid& node_uuid);
  ~SegmentReclaimer();

  void Start(EntryOwner* owner);
  void Stop();

 private:
  // One copy on its way.
  struct Move;
  // Of one victim. The writer reports here, and the owner is told on our own thread.
  struct Progress;

  void Loop();
  void MakeSegment();
  // false: nothing could be gained.
  bool MakeRoom();
  bool Reclaim(const SegmentBook::Victim& victim);
  void MoveEntry(const SegmentBook::Victim& victim, const FoundEntry& entry, Progress& progress);
  // Waits until at most that much is on its way, and tells the owner of what has arrived.
  void TellMoved(Progress& progress, uint64_t bytes_in_flight_max);
  bool Erase(uint32_t number);

  BlockDevice& device_;
  SegmentBook& book_;
  SegmentReader& reader_;
  SegmentWriter& writer_;
  const Uuid node_uuid_;
  std::unique_ptr<IoQueue> io_;
  EntryOwner* owner_ = nullptr;
  std::chrono::steady_clock::time_point tried_disk_{};
  std::thread thread_;
};

}  // namespace kvcfs::iouring
