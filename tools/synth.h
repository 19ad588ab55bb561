// Makes request traces with the shape of real ones, so that nobody needs a download.
//
// Sessions share system prompts and documents (Zipf), grow by turns, sometimes fork (a user edits
// and asks again) or loop (an agent with many short steps). Every block's id is given once, behind
// one parent, so the trace is a true prefix tree. The defaults are near Mooncake's conversation
// trace: 91% of blocks have one child, 37% are reused, median input 6,900 tokens.
// The same options give the same trace on every run.
#pragma once

#include <cstdint>
#include <functional>

#include "base/result.h"
#include "tools/trace.h"

namespace kvcfs::tools {

struct SynthOptions {
  uint64_t requests = 1000;
  uint64_t seed = 1;
  uint64_t sessions = 400;       // at most so many are alive at once
  uint64_t system_prompts = 12;  // all begin with one common block
  uint64_t documents = 200;      // long texts that several sessions ask about
  uint64_t block_tokens = 512;
  double agent_share = 0.06;  // of new sessions
  double requests_per_second = 3.4;
};

// kInvalid: options that make no sense. `emit` gets the requests in order of time.
Status SynthesizeTrace(const SynthOptions& options,
                       const std::function<void(const TraceRequest&)>& emit);

}  // namespace kvcfs::tools
