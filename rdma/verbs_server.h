// The answering side of the verbs provider: offers over TCP, queue pairs, calls to the Service.
//
// Who asks over the authenticated TCP connection for an offer gets a token; a queue pair that
// shows it belongs to that peer. Keys of regions are told in the same way, to peers of all
// namespaces only. Threads: Serve, Place and Abandon, those of the TCP transport; Responders, any;
// the rest, the loop's. Memory: served_calls.h.
// Fails: an offer: kUnsupported no device has this address; kDenied to peers of some namespaces.
#pragma once

#include <map>
#include <memory>
#include <unordered_map>

#include "base/mutex.h"
#include "rdma/served_calls.h"
#include "rdma/verbs_shared.h"

namespace kvcfs::rdma {

class VerbsServed;

class VerbsServer final : public Service,
                          public VerbsEvents,
                          public VerbsMember,
                          public std::enable_shared_from_this<VerbsServer> {
 public:
  VerbsServer(std::shared_ptr<VerbsShared> shared, Service* service);
  ~VerbsServer() override;

  // Listens with librdmacm where TCP listens already. Not kOk: no peer will use verbs.
  void Listen(const Address& address);

  // Over TCP: what is ours is answered, the rest is the service's.
  void Serve(Method method, Bytes request, std::span<std::byte> bulk,
             std::unique_ptr<Responder> responder) override;
  std::span<std::byte> Place(Method method, std::span<const std::byte> request,
                             uint32_t bytes) override {
    return service_->Place(method, request, bytes);
  }
  void Abandon(std::span<std::byte> place) override { service_->Abandon(place); }

  // Queue pairs of peers that are revoked are gone when it returns. Not from the loop.
  void EndRevoked();

  void OnConnectEvent(const rdma_cm_event& event) override;
  void Tick(Millis now) override;
  Millis NextTick() const override { return Millis::max(); }
  void Stop() override;
  bool CanGo() const override { return stopped_; }

 private:
  friend class VerbsServed;
  struct Grant {
    std::shared_ptr<const PeerIdentity> peer;
    Millis expires{0};                     // if nobody has connected by then
    uint32_t links = 0;                    // that are there
    size_t device = VerbsLoop::kNoDevice;  // of the last of them
  };
  void Offer(Responder& responder) KVC_EXCLUDES(mutex_);
  void TellKey(std::span<const std::byte> request, Responder& responder) KVC_EXCLUDES(mutex_);
  void Ended(VerbsServed* served) KVC_EXCLUDES(mutex_);

  const std::shared_ptr<VerbsShared> shared_;
  Service* const service_;
  rdma_cm_id* id_ = nullptr;
  bool stopped_ = false;
  std::unordered_map<VerbsServed*, std::shared_ptr<VerbsServed>> served_;  // the loop's

  Mutex mutex_;
  Status listening_ KVC_GUARDED_BY(mutex_) = Error{Code::kUnsupported, "not listening"};
  uint16_t port_ KVC_GUARDED_BY(mutex_) = 0;
  std::map<VerbsToken, Grant> grants_ KVC_GUARDED_BY(mutex_);
};

}  // namespace kvcfs::rdma
