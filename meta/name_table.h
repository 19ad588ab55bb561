// The names of one namespace's ordinary files at their owner: what each request changes, and says.
//
// Reads the records in the MetaStore; what is to change it says as records, which the caller writes
// (and copies to another node) in one batch before anything else is applied.
//   'f' namespace 'i' file           -> inode (StoredFile)
//   'f' namespace 'n' directory name -> file, cookie: what a name means
//   'f' namespace 'd' directory cookie -> file, name: the same in listing order
//   'f' namespace 'k' time file      -> empty: a file without a name that goes at that time
//   'f' namespace 'R' place          -> request, reply: what a recent request did
//   'f' namespace 'S'                -> NameState
// Numbers in keys are big-endian. Threads: Ask from several at once; Apply from one, without Ask.
// Fails: a record that is damaged, and the device: Code, kCorrupt or kIo.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "meta/meta_store.h"
#include "meta/name_messages.h"

namespace kvcfs::meta {

// How new a copy of a namespace's names is: the higher term, then the higher sequence.
struct NameState {
  uint64_t term = 0;  // the epoch in which its owner began
  uint64_t sequence = 0;
  uint64_t next_cookie = 0;
};

class NameTable {
 public:
  NameTable(MetaStore* store, const SpaceId& space);

  // As it was written last; again after records of another node were written.
  Status Load();
  const NameState& state() const { return state_; }

  // Answers a question (IsQuestion, without those of nodes).
  NameReply Ask(const NameRequest& request);
  // What the request does, as records to be written; none where it does nothing. `now`: wall clock.
  NameReply Apply(const NameRequest& request, int64_t now_nanos, std::vector<NameRecord>* records);
  // Takes the owner's place in `term`.
  void Begin(uint64_t term, std::vector<NameRecord>* records);
  Status Write(const std::vector<NameRecord>& records);

  // A page of all records behind `after` (a key; empty: from the start), at most about `bytes`.
  // True: there are no more.
  Result<bool> Page(const std::string& after, size_t bytes, std::vector<NameRecord>* records);
  // Everything goes.
  Status Clear();
  // The record of NameState: what is without it is no copy.
  bool IsState(const NameRecord& record) const { return record.key == prefix_ + 'S'; }

 private:
  class Operation;

  void AddState(std::vector<NameRecord>* records) const;
  std::optional<NameReply> DoneBefore(const FileId& request);

  MetaStore& store_;
  const std::string prefix_;
  NameState state_;
};

// The namespaces of which there is something in this store.
std::vector<SpaceId> SpacesWithNames(MetaStore& store);

}  // namespace kvcfs::meta
