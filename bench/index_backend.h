// What answers "how many of these leading blocks are cached": ours and what it is compared with,
// behind one interface, so that one loop measures all.
//
// The index is loaded before anything is measured, with the blocks of a trace that are used more
// than once: what a perfect cache would keep, and prefix-closed. Then each request of the trace
// asks for all of its blocks; how many leading ones there are is known, and checked. Key modes.
// int: the key is the trace's number of the block, as 8 bytes; numbers of one request's new blocks
// follow one another, which trees like. sha256: 32 bytes without order, as engines have. The value
// is an address of 8 bytes; ours says more (places, length, CRC).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/block_key.h"
#include "base/result.h"
#include "bench/trace_tree.h"

namespace kvcfs::bench {

enum class KeyMode { kInt, kSha256 };

// The loaded blocks, and the questions.
class IndexLoad {
 public:
  IndexLoad(const TraceTree& tree, size_t requests_max);

  const TraceTree& tree() const { return tree_; }
  std::span<const Block> blocks() const { return blocks_; }  // parents first
  const BlockKey& key(Block block) const { return keys_[block]; }
  uint64_t id(Block block) const { return tree_.id(block); }

  struct Question {
    std::span<const BlockKey> keys;
    std::span<const uint64_t> ids;
    size_t cached = 0;  // how many leading ones are there
    uint64_t timestamp_ms = 0;
  };
  size_t question_count() const { return requests_.size(); }
  Question question(size_t index) const;

 private:
  const TraceTree& tree_;
  std::vector<BlockKey> keys_;  // [block]
  std::vector<Block> blocks_;
  std::vector<size_t> requests_;  // [question] request; every nth, if there are too many
  std::vector<size_t> begins_;    // [question], and the end
  std::vector<BlockKey> asked_keys_;
  std::vector<uint64_t> asked_ids_;
  std::vector<size_t> cached_;
};

// Under the cost model, the index lies on so many servers, each with a queue pair of the client's.
inline constexpr uint32_t kModelServers = 4;

// What a question cost where that can be counted.
struct QuestionCost {
  uint64_t round_trips = 0;  // that wait for one another
  uint64_t reads = 0;        // one-sided READs
  uint64_t bytes = 0;        // both ways
  double model_us = 0;       // under rdma/cost_model.h; 0: it is to be timed
};

// One client; Range and Get by Match, where it has nothing better. Threads: one.
class IndexClient {
 public:
  virtual ~IndexClient() = default;
  // The longest cached prefix.
  virtual Result<size_t> Match(const IndexLoad::Question& question, QuestionCost* cost) = 0;
  // Of a prefix, the part from `first` on: numbers that follow one another. How many are there.
  virtual Result<size_t> Range(const IndexLoad::Question& prefix, size_t first, QuestionCost* cost);
  // The last one alone.
  virtual Result<size_t> Get(const IndexLoad::Question& prefix, QuestionCost* cost);
};

class IndexBackend {
 public:
  virtual ~IndexBackend() = default;
  virtual Result<std::unique_ptr<IndexClient>> Connect() = 0;
  // So far; nothing: it works on the caller's thread.
  virtual std::optional<double> ServerCpuSeconds() { return std::nullopt; }
  // Sent and received so far by all clients; nothing: they count what they cost themselves.
  virtual std::optional<uint64_t> NetworkBytes() { return std::nullopt; }
  virtual double bytes_per_block() const { return 0; }  // 0: not known
};

struct BackendKind {
  std::string backend;
  std::string transport;  // inproc, tcp, unix, model
  std::string cache;      // cold: clients know nothing before; warm: they asked the same before
  std::vector<KeyMode> modes;
  // kUnsupported: what is missing.
  std::function<Result<std::unique_ptr<IndexBackend>>(const IndexLoad&, KeyMode)> make;
};

// What the backends in other processes need.
struct BackendHosts {
  std::string program;  // this one, to be run as a node
  std::string trace;    // file, for the node to load
  uint64_t limit = 0;
  size_t requests_max = 0;
};
std::vector<BackendKind> LocalBackends();
std::vector<BackendKind> RedisBackends();
std::vector<BackendKind> ClusterBackends(const BackendHosts& hosts);
std::vector<BackendKind> ModelBackends();       // ours, flat hash, batch RPC under the cost model
std::vector<BackendKind> RemoteTreeBackends();  // Sherman, CHIME

}  // namespace kvcfs::bench
