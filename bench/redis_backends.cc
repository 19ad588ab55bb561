// A real Redis server on this machine, asked by hiredis as engines ask it: a value of 8 bytes a
// block, by GET after GET, GETs in one pipeline, MGET, or as ranges of an ordered set.
//
// It runs without persistence, one thread, as it comes. In sha256 mode an ordered set has no use of
// its order; its range is then a ZMSCORE of all keys.
#include <atomic>
#include <cstring>
#include <memory>

#include <fmt/format.h>
#include <hiredis/hiredis.h>

#include "bench/child_process.h"
#include "bench/index_backend.h"

namespace kvcfs::bench {
namespace {

enum class Way { kGet, kPipeline, kMget, kRange };

struct ContextCloser {
  void operator()(redisContext* context) const { redisFree(context); }
};
using Context = std::unique_ptr<redisContext, ContextCloser>;
struct ReplyCloser {
  void operator()(redisReply* reply) const { freeReplyObject(reply); }
};
using Reply = std::unique_ptr<redisReply, ReplyCloser>;

constexpr const char* kSetName = "blocks";

class Arguments {
 public:
  void Add(std::string text) { texts_.push_back(std::move(text)); }
  void Append(redisContext* context) const {
    std::vector<const char*> data;
    std::vector<size_t> sizes;
    for (const std::string& text : texts_) {
      data.push_back(text.data());
      sizes.push_back(text.size());
    }
    redisAppendCommandArgv(context, static_cast<int>(data.size()), data.data(), sizes.data());
  }
  uint64_t bytes() const {
    uint64_t sum = 0;
    for (const std::string& text : texts_) sum += text.size() + 8;  // "$32\r\n" and "\r\n"
    return sum;
  }

 private:
  std::vector<std::string> texts_;
};

std::string KeyText(KeyMode mode, uint64_t id, const BlockKey& key) {
  if (mode == KeyMode::kInt) return std::string(reinterpret_cast<const char*>(&id), sizeof(id));
  return std::string(reinterpret_cast<const char*>(key.bytes.data()), key.bytes.size());
}

class RedisClient final : public IndexClient {
 public:
  RedisClient(Context context, KeyMode mode, Way way)
      : context_(std::move(context)), mode_(mode), way_(way) {}

  Result<size_t> Match(const IndexLoad::Question& question, QuestionCost* cost) override {
    return Leading(question, 0, cost);
  }
  Result<size_t> Range(const IndexLoad::Question& prefix, size_t first,
                       QuestionCost* cost) override {
    return Leading(prefix, first, cost);
  }
  Result<size_t> Get(const IndexLoad::Question& prefix, QuestionCost* cost) override {
    const size_t last = prefix.keys.size() - 1;
    Send("GET", prefix, last, last + 1, cost);
    KVC_TRY_ASSIGN(const Reply reply, Receive(cost));
    ++cost->round_trips;
    return size_t{reply->type == REDIS_REPLY_STRING ? 1u : 0u};
  }

 private:
  Result<size_t> Leading(const IndexLoad::Question& question, size_t first, QuestionCost* cost) {
    const size_t count = question.keys.size();
    size_t found = 0;
    bool whole = true;
    const auto note = [&](const redisReply& reply) {
      const bool there = reply.type == REDIS_REPLY_STRING;
      whole = whole && there;
      if (whole) ++found;
    };
    switch (way_) {
      case Way::kGet:
        for (size_t at = first; at < count && whole; ++at) {
          Send("GET", question, at, at + 1, cost);
          KVC_TRY_ASSIGN(const Reply reply, Receive(cost));
          ++cost->round_trips;
          note(*reply);
        }
        return found;
      case Way::kPipeline:
        for (size_t at = first; at < count; ++at) Send("GET", question, at, at + 1, cost);
        for (size_t at = first; at < count; ++at) {
          KVC_TRY_ASSIGN(const Reply reply, Receive(cost));
          note(*reply);
        }
        ++cost->round_trips;
        return found;
      case Way::kMget: {
        Send("MGET", question, first, count, cost);
        KVC_TRY_ASSIGN(const Reply reply, Receive(cost));
        ++cost->round_trips;
        for (size_t i = 0; i < reply->elements; ++i) note(*reply->element[i]);
        return found;
      }
      case Way::kRange:
        return mode_ == KeyMode::kInt ? ByRanges(question, first, cost)
                                      : ByScores(question, first, cost);
    }
    return found;
  }

  // Numbers that follow one another are one range; all ranges in one pipeline.
  Result<size_t> ByRanges(const IndexLoad::Question& question, size_t first, QuestionCost* cost) {
    std::vector<size_t> lengths;
    for (size_t at = first; at < question.ids.size();) {
      size_t end = at + 1;
      while (end < question.ids.size() && question.ids[end] == question.ids[end - 1] + 1) ++end;
      Arguments arguments;
      for (std::string text :
           {std::string("ZRANGEBYSCORE"), std::string(kSetName), std::to_string(question.ids[at]),
            std::to_string(question.ids[end - 1])}) {
        arguments.Add(std::move(text));
      }
      arguments.Append(context_.get());
      cost->bytes += arguments.bytes();
      lengths.push_back(end - at);
      at = end;
    }
    size_t found = 0;
    bool whole = true;
    for (const size_t length : lengths) {
      KVC_TRY_ASSIGN(const Reply reply, Receive(cost));
      // A prefix is whole from the front on, so what is missing is at the end.
      if (whole) found += std::min(length, reply->elements);
      whole = whole && reply->elements == length;
    }
    ++cost->round_trips;
    return found;
  }

  Result<size_t> ByScores(const IndexLoad::Question& question, size_t first, QuestionCost* cost) {
    Arguments arguments;
    arguments.Add("ZMSCORE");
    arguments.Add(kSetName);
    for (size_t at = first; at < question.keys.size(); ++at) {
      arguments.Add(KeyText(mode_, question.ids[at], question.keys[at]));
    }
    arguments.Append(context_.get());
    cost->bytes += arguments.bytes();
    KVC_TRY_ASSIGN(const Reply reply, Receive(cost));
    ++cost->round_trips;
    size_t found = 0;
    while (found < reply->elements && reply->element[found]->type != REDIS_REPLY_NIL) ++found;
    return found;
  }

  void Send(const char* command, const IndexLoad::Question& question, size_t begin, size_t end,
            QuestionCost* cost) {
    Arguments arguments;
    arguments.Add(command);
    for (size_t at = begin; at < end; ++at) {
      arguments.Add(KeyText(mode_, question.ids[at], question.keys[at]));
    }
    arguments.Append(context_.get());
    cost->bytes += arguments.bytes();
  }

  Result<Reply> Receive(QuestionCost* cost) {
    void* raw = nullptr;
    if (redisGetReply(context_.get(), &raw) != REDIS_OK) {
      return Error{Code::kUnavailable, fmt::format("Redis: {}", context_->errstr)};
    }
    Reply reply(static_cast<redisReply*>(raw));
    if (reply->type == REDIS_REPLY_ERROR) {
      return Error{Code::kInternal, fmt::format("Redis: {}", reply->str)};
    }
    cost->bytes += 14 * std::max<size_t>(1, reply->elements);  // "$8\r\n", 8 bytes, "\r\n"
    return reply;
  }

  const Context context_;
  const KeyMode mode_;
  const Way way_;
};

class RedisBackend final : public IndexBackend {
 public:
  RedisBackend(KeyMode mode, Way way, bool by_unix) : mode_(mode), way_(way), by_unix_(by_unix) {}

  Status Start(const IndexLoad& load) {
    port_ = FreePort();
    socket_ = directory_.path() + "/redis.sock";
    KVC_TRY(server_.Start(
        {"redis-server", "--port", std::to_string(port_), "--bind", "127.0.0.1", "--unixsocket",
         socket_, "--dir", directory_.path(), "--save", "", "--appendonly", "no"},
        directory_.path() + "/log", false));
    KVC_TRY(server_.Await([&] { return Open().ok(); }, std::chrono::seconds(30)));
    const uint64_t before = server_.ResidentBytes();
    KVC_TRY_ASSIGN(const Context context, Open());
    size_t sent = 0;
    const auto receive = [&]() -> Status {
      for (; sent > 0; --sent) {
        void* raw = nullptr;
        if (redisGetReply(context.get(), &raw) != REDIS_OK) {
          return Error{Code::kUnavailable, fmt::format("Redis: {}", context->errstr)};
        }
        const Reply reply(static_cast<redisReply*>(raw));
        if (reply->type == REDIS_REPLY_ERROR) return Error{Code::kInternal, reply->str};
      }
      return {};
    };
    for (const Block block : load.blocks()) {
      const std::string key = KeyText(mode_, load.id(block), load.key(block));
      const uint64_t address = block;
      Arguments arguments;
      if (way_ == Way::kRange) {
        arguments.Add("ZADD");
        arguments.Add(kSetName);
        arguments.Add(std::to_string(mode_ == KeyMode::kInt ? load.id(block) : address));
        arguments.Add(key);
      }
      if (way_ == Way::kRange) {
        arguments.Append(context.get());
        ++sent;
      }
      Arguments plain;
      plain.Add("SET");
      plain.Add(key);
      plain.Add(std::string(reinterpret_cast<const char*>(&address), sizeof(address)));
      plain.Append(context.get());
      if (++sent >= 512) KVC_TRY(receive());
    }
    KVC_TRY(receive());
    if (!load.blocks().empty()) {
      bytes_ = static_cast<double>(server_.ResidentBytes() - before) /
               static_cast<double>(load.blocks().size());
    }
    return {};
  }

  Result<std::unique_ptr<IndexClient>> Connect() override {
    KVC_TRY_ASSIGN(Context context, Open());
    return std::unique_ptr<IndexClient>(
        std::make_unique<RedisClient>(std::move(context), mode_, way_));
  }
  std::optional<double> ServerCpuSeconds() override { return server_.CpuSeconds(); }
  double bytes_per_block() const override { return bytes_; }

 private:
  Result<Context> Open() const {
    Context context(by_unix_ ? redisConnectUnix(socket_.c_str())
                             : redisConnect("127.0.0.1", port_));
    if (context == nullptr || context->err != 0) {
      return Error{Code::kUnavailable, "Redis does not answer"};
    }
    return context;
  }

  const KeyMode mode_;
  const Way way_;
  const bool by_unix_;
  const TemporaryDirectory directory_;
  int port_ = 0;
  std::string socket_;
  ChildProcess server_;
  double bytes_ = 0;
};

}  // namespace

std::vector<BackendKind> RedisBackends() {
  std::vector<BackendKind> kinds;
  for (const bool by_unix : {false, true}) {
    const std::pair<const char*, Way> ways[] = {{"redis-get", Way::kGet},
                                                {"redis-pipeline", Way::kPipeline},
                                                {"redis-mget", Way::kMget},
                                                {"redis-range", Way::kRange}};
    for (const auto& [name, way] : ways) {
      kinds.push_back({name,
                       by_unix ? "unix" : "tcp",
                       "cold",
                       {KeyMode::kInt, KeyMode::kSha256},
                       [way = way, by_unix](const IndexLoad& load,
                                            KeyMode mode) -> Result<std::unique_ptr<IndexBackend>> {
                         if (!IsInstalled("redis-server")) {
                           return Error{Code::kUnsupported, "redis-server is not installed"};
                         }
                         auto backend = std::make_unique<RedisBackend>(mode, way, by_unix);
                         KVC_TRY(backend->Start(load));
                         return std::unique_ptr<IndexBackend>(std::move(backend));
                       }});
    }
  }
  return kinds;
}

}  // namespace kvcfs::bench
