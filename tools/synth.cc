#include "tools/synth.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "tools/random.h"

namespace kvcfs::tools {
namespace {

constexpr uint64_t kTickMs = 3000;               // real traces have their timestamps on this grid
constexpr double kZipfExponent = 1.1;            // few prompts and documents get most requests
constexpr uint64_t kContextTokensMax = 128'000;  // a session that reaches it ends
constexpr uint64_t kOutputTokensMax = 2000;

// The knobs that bring the result near the conversation trace; see synth_test.cc for how near.
constexpr double kNewSessionShare = 0.66;
constexpr double kPlainPromptShare = 0.6;  // of new sessions: only the common block
constexpr double kDocumentShare = 0.05;    // of new sessions
constexpr double kForkShare = 0.04;        // of turns
constexpr double kRepeatShare = 0.01;      // of turns
constexpr double kSessionEndShare = 0.35;  // after a turn
constexpr double kAgentEndShare = 0.06;

enum class Kind { kChat, kDocument, kAgent };

struct Session {
  Kind kind = Kind::kChat;
  std::vector<uint64_t> full_blocks;  // ids of whole blocks
  uint64_t tokens = 0;                // of input, so far
  uint64_t output_tokens = 0;         // of the last answer: part of the next input
  // What a fork goes back to: the turn before.
  size_t earlier_blocks = 0;
  uint64_t earlier_tokens = 0;
  TraceRequest last;
};

class Synthesizer {
 public:
  explicit Synthesizer(const SynthOptions& options)
      : options_(options),
        random_(options.seed),
        prompt_rank_(options.system_prompts, kZipfExponent),
        document_rank_(options.documents, kZipfExponent) {
    const uint64_t common = next_id_++;
    for (uint64_t i = 0; i < options.system_prompts; ++i) {
      // The most popular one is the common block alone.
      prompts_.push_back({common});
      const uint64_t more = i == 0 ? 0 : 1 + random_.Below(7);
      for (uint64_t block = 0; block < more; ++block) prompts_.back().push_back(next_id_++);
    }
    documents_.resize(options.documents);
  }

  TraceRequest Next() {
    const bool is_new = sessions_.empty() || random_.Chance(kNewSessionShare);
    if (is_new) return Begin();
    return Continue();
  }

  uint64_t Arrivals() {
    return random_.Poisson(options_.requests_per_second * static_cast<double>(kTickMs) / 1000);
  }

 private:
  uint64_t Tokens(double median, double sigma, uint64_t max) {
    const double tokens = random_.LogNormal(median, sigma);
    return std::clamp<uint64_t>(static_cast<uint64_t>(tokens), 1, max);
  }

  const std::vector<uint64_t>& Prompt() {
    return prompts_[random_.Chance(kPlainPromptShare) ? 0 : prompt_rank_(random_)];
  }

  TraceRequest Begin() {
    Session session;
    const double kind = random_.Uniform();
    session.kind = kind < options_.agent_share                    ? Kind::kAgent
                   : kind < options_.agent_share + kDocumentShare ? Kind::kDocument
                                                                  : Kind::kChat;
    if (session.kind == Kind::kDocument) {
      std::vector<uint64_t>& document = documents_[document_rank_(random_)];
      if (document.empty()) {
        document = Prompt();
        const uint64_t blocks =
            1 + Tokens(12'000, 0.8, kContextTokensMax / 2) / options_.block_tokens;
        for (uint64_t block = 0; block < blocks; ++block) document.push_back(next_id_++);
      }
      session.full_blocks = document;
    } else {
      session.full_blocks = Prompt();
    }
    session.tokens = session.full_blocks.size() * options_.block_tokens;
    const uint64_t text = session.kind == Kind::kChat       ? Tokens(4800, 1.3, 120'000)
                          : session.kind == Kind::kDocument ? Tokens(300, 0.9, 4000)
                                                            : Tokens(2500, 0.7, 20'000);
    TraceRequest request = Ask(session, text);
    if (sessions_.size() >= options_.sessions) sessions_.erase(sessions_.begin());
    sessions_.push_back(std::move(session));
    return request;
  }

  TraceRequest Continue() {
    // Agents ask again at once, people after a while; recent sessions are the lively ones.
    size_t index = sessions_.size();
    if (random_.Chance(0.4)) {
      for (size_t tries = 0; tries < 8 && index == sessions_.size(); ++tries) {
        const size_t candidate = random_.Below(sessions_.size());
        if (sessions_[candidate].kind == Kind::kAgent) index = candidate;
      }
    }
    if (index == sessions_.size()) {
      const double recency = random_.Uniform();
      index = sessions_.size() - 1 -
              static_cast<size_t>(recency * recency * static_cast<double>(sessions_.size()));
    }
    Session& session = sessions_[index];
    if (random_.Chance(kRepeatShare)) return session.last;
    if (random_.Chance(kForkShare) && session.earlier_tokens > 0) {
      session.full_blocks.resize(session.earlier_blocks);
      session.tokens = session.earlier_tokens;
    } else {
      session.earlier_blocks = session.full_blocks.size();
      session.earlier_tokens = session.tokens;
      session.tokens += session.output_tokens;
    }
    const uint64_t text =
        session.kind == Kind::kAgent ? Tokens(900, 0.9, 16'000) : Tokens(500, 1.3, 16'000);
    TraceRequest request = Ask(session, text);
    const double end_share = session.kind == Kind::kAgent ? kAgentEndShare : kSessionEndShare;
    if (session.tokens >= kContextTokensMax || random_.Chance(end_share)) {
      sessions_.erase(sessions_.begin() + static_cast<ptrdiff_t>(index));
    }
    return request;
  }

  // Adds text to the session and asks: whole blocks get ids that stay, the rest one that is new
  // each time, since the next turn fills that block with other tokens.
  TraceRequest Ask(Session& session, uint64_t text_tokens) {
    session.tokens = std::min(session.tokens + text_tokens, kContextTokensMax);
    while (session.full_blocks.size() < session.tokens / options_.block_tokens) {
      session.full_blocks.push_back(next_id_++);
    }
    session.output_tokens = Tokens(340, 0.6, kOutputTokensMax);
    TraceRequest request;
    request.input_length = session.tokens;
    request.output_length = session.output_tokens;
    request.hash_ids = session.full_blocks;
    if (session.tokens > session.full_blocks.size() * options_.block_tokens) {
      request.hash_ids.push_back(next_id_++);
    }
    session.last = request;
    return request;
  }

  const SynthOptions options_;
  Random random_;
  const Zipf prompt_rank_, document_rank_;
  uint64_t next_id_ = 0;
  std::vector<std::vector<uint64_t>> prompts_;    // whole blocks, the common one first
  std::vector<std::vector<uint64_t>> documents_;  // made when first asked about; with their prompt
  std::vector<Session> sessions_;                 // oldest first
};

}  // namespace

Status SynthesizeTrace(const SynthOptions& options,
                       const std::function<void(const TraceRequest&)>& emit) {
  const struct {
    const char* name;
    uint64_t value;
  } counts[] = {{"requests", options.requests},
                {"sessions", options.sessions},
                {"system-prompts", options.system_prompts},
                {"documents", options.documents},
                {"block-tokens", options.block_tokens}};
  for (const auto& count : counts) {
    if (count.value == 0) {
      return Error{Code::kInvalid, fmt::format("--{} must be at least 1", count.name)};
    }
  }
  if (!(options.agent_share >= 0 && options.agent_share <= 1)) {
    return Error{Code::kInvalid, "--agents must be a share from 0 to 1"};
  }
  if (!(options.requests_per_second > 0 && options.requests_per_second <= 100)) {
    return Error{Code::kInvalid, "--rate must be above 0 and at most 100 requests a second"};
  }
  Synthesizer synthesizer(options);
  uint64_t made = 0;
  for (uint64_t now_ms = 0; made < options.requests; now_ms += kTickMs) {
    for (uint64_t left = synthesizer.Arrivals(); left > 0 && made < options.requests; --left) {
      TraceRequest request = synthesizer.Next();
      request.timestamp_ms = now_ms;
      emit(request);
      ++made;
    }
  }
  return {};
}

}  // namespace kvcfs::tools
