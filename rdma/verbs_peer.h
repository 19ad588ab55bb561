// The asking side of the verbs provider: a peer's queue pairs, calls over the first of them, READs
// over all.
//
// Beside it stands the same peer over TCP. It is asked for the offer and for keys; it carries
// WRITEs, and everything while there are no queue pairs; and it is the judge of a READ that failed:
// that is asked again there, so who reads never sees that a queue pair broke. Threads: Issue, any;
// all else, the loop's. Memory: as TcpPeerCore: before a completion, a queue pair that might still
// touch a caller's memory is destroyed.
// Fails: as TcpPeerCore; calls in flight on queue pairs that break are kUnavailable.
#pragma once

#include <atomic>
#include <memory>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "rdma/verbs_shared.h"

namespace kvcfs::rdma {

class VerbsPeerCore final : public VerbsMember,
                            public VerbsLinkOwner,
                            public FrameSink,
                            public std::enable_shared_from_this<VerbsPeerCore> {
 public:
  VerbsPeerCore(std::shared_ptr<VerbsShared> shared, Address address, std::shared_ptr<Peer> tcp);
  ~VerbsPeerCore() override;

  struct CallRequest {
    Method method = 0;
    Bytes head;
    CallOptions options;
  };
  // False: there are no queue pairs; ask in another way: nothing was taken.
  bool IssueCall(CallRequest& request, Completion& done);
  bool IssueRead(const RemoteSpan& from, std::span<std::byte> into, Millis timeout,
                 Completion& done);
  bool up() const { return up_; }
  // That verbs would be nice to have.
  void Want();
  bool Hold(uint64_t bytes);
  void LetGo(uint64_t bytes) { in_flight_bytes_.fetch_sub(bytes); }
  Peer& tcp() { return *tcp_; }
  // Nobody holds the peer any more: cancels what is open, and goes.
  void Abandon();

  void Tick(Millis now) override;
  Millis NextTick() const override;
  void Stop() override { End(); }
  bool CanGo() const override { return ended_; }
  void OnLinkUp(VerbsLink* link) override;
  void OnLinkDown(VerbsLink* link, const Error& why) override;
  Result<std::span<std::byte>> PlaceBulk(const FrameHeader& header,
                                         std::span<const std::byte> head) override;
  Status OnFrame(const FrameHeader& header, Bytes head, std::span<std::byte> bulk) override;

 private:
  struct OpenCall {
    Millis deadline{0};
    std::span<std::byte> receive;
    bool begun = false;  // PlaceBulk gave `receive`
    Completion done;
  };
  struct OpenRead {
    RemoteSpan from;
    std::span<std::byte> into;
    Millis deadline{0};
    Completion done;
    VerbsMemory memory{};               // registered for it alone
    std::shared_ptr<VerbsLink> link{};  // null: not posted
  };
  struct Key {
    VerbsRegions::Key key;
    Millis ask_again{0};  // if there is none
  };

  void StartCall(CallRequest request, Completion done, Millis deadline);
  void StartRead(uint64_t id);
  void AskKey(uint64_t region, Millis deadline);
  void OnKey(uint64_t region, const Reply& reply);
  void PostRead(uint64_t id, OpenRead& read, const VerbsRegions::Key& key);
  void OnRead(uint64_t id, const Status& status);
  // Over TCP, in the time that is left.
  void ReadByTcp(OpenRead read);
  void Expire(Millis now);
  void Connect();
  void OnOffer(const Reply& reply);
  void OnAddress(const VerbsOffer& offer, const Status& status, const sockaddr_storage& to);
  // All queue pairs go; what was in flight on them is answered.
  void Drop(const Error& why);
  void End();
  static void Complete(const Completion& done, Reply reply) { done(std::move(reply)); }
  Millis Left(Millis deadline) const;

  const std::shared_ptr<VerbsShared> shared_;
  VerbsLoop& loop_;
  const Address address_;
  const std::shared_ptr<Peer> tcp_;
  std::atomic<bool> up_{false};
  std::atomic<bool> wanted_{false};
  std::atomic<int64_t> retry_at_ms_{0};
  std::atomic<uint64_t> in_flight_bytes_{0};

  bool ended_ = false;
  bool connecting_ = false, was_up_ = false, dropping_ = false;
  Millis backoff_{0};
  Millis check_at_ = Millis::max();
  VerbsToken token_{};
  std::vector<std::shared_ptr<VerbsLink>> links_;
  std::unordered_map<uint64_t, OpenCall> calls_;
  std::unordered_map<uint64_t, OpenRead> reads_;
  std::set<std::pair<Millis, uint64_t>> deadlines_;
  uint64_t last_id_ = 0;
  std::unordered_map<uint64_t, Key> keys_;
  size_t device_ = SIZE_MAX;  // the peer's, whose keys are ours; not told yet
  std::unordered_map<uint64_t, std::vector<uint64_t>> asking_;  // reads that wait for a key
  std::shared_ptr<VerbsStaging> staging_;
};

}  // namespace kvcfs::rdma
