#include "meta/etcd_client.h"

#include <atomic>
#include <charconv>
#include <chrono>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <httplib.h>
#include <nlohmann/json.hpp>
#include <openssl/evp.h>

namespace kvcfs::meta {

namespace {

using Json = nlohmann::json;

// The gateway's JSON carries bytes as base64, and 64-bit integers as decimal text.
std::string Base64(std::string_view bytes) {
  std::string text(4 * ((bytes.size() + 2) / 3) + 1, '\0');
  const int length = EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()),
                                     reinterpret_cast<const unsigned char*>(bytes.data()),
                                     static_cast<int>(bytes.size()));
  text.resize(static_cast<size_t>(length));
  return text;
}

std::optional<std::string> FromBase64(std::string_view text) {
  if (text.size() % 4 != 0) return std::nullopt;
  std::string bytes(text.size() / 4 * 3, '\0');
  const int length = EVP_DecodeBlock(reinterpret_cast<unsigned char*>(bytes.data()),
                                     reinterpret_cast<const unsigned char*>(text.data()),
                                     static_cast<int>(text.size()));
  if (length < 0) return std::nullopt;
  size_t padding = 0;
  while (padding < 2 && text.size() > padding && text[text.size() - 1 - padding] == '=') ++padding;
  bytes.resize(static_cast<size_t>(length) - padding);
  return bytes;
}

// What begins with `prefix` ends before this key; etcd calls it range_end.
std::string EndOfPrefix(std::string_view prefix) {
  std::string end(prefix);
  while (!end.empty() && static_cast<unsigned char>(end.back()) == 0xff) end.pop_back();
  if (end.empty()) return std::string(1, '\0');  // to the last key of all
  end.back() = static_cast<char>(end.back() + 1);
  return end;
}

// A field that may be missing (zero, as protobuf leaves it out), text or a number.
std::optional<int64_t> Integer(const Json& object, const char* name) {
  const auto it = object.find(name);
  if (it == object.end()) return 0;
  if (it->is_number_integer()) return it->get<int64_t>();
  if (!it->is_string()) return std::nullopt;
  const auto& text = it->get_ref<const std::string&>();
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

Error NotEtcd(std::string_view what) {
  return {Code::kCorrupt, fmt::format("etcd's answer to {} is not what etcd answers", what)};
}

struct Endpoint {
  std::string host;
  int port = 0;
};

std::optional<Endpoint> ParseEndpoint(std::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return std::nullopt;
  Endpoint endpoint{std::string(text.substr(0, colon)), 0};
  if (endpoint.host.front() == '[' && endpoint.host.back() == ']' && endpoint.host.size() > 2) {
    endpoint.host = endpoint.host.substr(1, endpoint.host.size() - 2);
  }
  const char* const end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data() + colon + 1, end, endpoint.port);
  if (error != std::errc() || at != end) return std::nullopt;
  if (endpoint.port < 1 || endpoint.port > 65535) return std::nullopt;
  return endpoint;
}

class GatewayClient final : public EtcdClient {
 public:
  explicit GatewayClient(EtcdOptions options) : options_(std::move(options)) {}

  Result<EtcdRange> List(std::string_view prefix) override {
    const Json request{{"key", Base64(prefix)}, {"range_end", Base64(EndOfPrefix(prefix))}};
    KVC_TRY_ASSIGN(const Json answer, Call("kv/range", request));
    EtcdRange range;
    const auto header = answer.find("header");
    if (header == answer.end() || !header->is_object()) return NotEtcd("range");
    const auto revision = Integer(*header, "revision");
    if (!revision) return NotEtcd("range");
    range.revision = *revision;
    for (const Json& entry : answer.value("kvs", Json::array())) {
      if (!entry.is_object()) return NotEtcd("range");
      const auto key = FromBase64(entry.value("key", ""));
      const auto value = FromBase64(entry.value("value", ""));
      const auto changed = Integer(entry, "mod_revision"), lease = Integer(entry, "lease");
      if (!key || !value || !changed || !lease) return NotEtcd("range");
      range.values.push_back({*key, *value, *changed, *lease});
    }
    return range;
  }

  Status Put(std::string_view key, std::string_view value, int64_t lease) override {
    KVC_TRY(
        Call("kv/put",
             {{"key", Base64(key)}, {"value", Base64(value)}, {"lease", std::to_string(lease)}}));
    return {};
  }

  Result<bool> PutIf(std::string_view key, int64_t revision, std::string_view value) override {
    return DoIf(key, revision, {{"request_put", {{"key", Base64(key)}, {"value", Base64(value)}}}});
  }

  Result<bool> RemoveIf(std::string_view key, int64_t revision) override {
    return DoIf(key, revision, {{"request_delete_range", {{"key", Base64(key)}}}});
  }

  Status Remove(std::string_view key) override {
    KVC_TRY(Call("kv/deleterange", {{"key", Base64(key)}}));
    return {};
  }

  Result<int64_t> GrantLease(std::chrono::seconds life) override {
    KVC_TRY_ASSIGN(const Json answer, Call("lease/grant", {{"TTL", std::to_string(life.count())}}));
    const auto lease = Integer(answer, "ID");
    if (!lease || *lease == 0) return NotEtcd("lease grant");
    return *lease;
  }

  Result<std::chrono::seconds> RenewLease(int64_t lease) override {
    KVC_TRY_ASSIGN(const Json answer, Call("lease/keepalive", {{"ID", std::to_string(lease)}}));
    const auto result = answer.find("result");
    if (result == answer.end() || !result->is_object()) return NotEtcd("lease renewal");
    const auto life = Integer(*result, "TTL");
    if (!life) return NotEtcd("lease renewal");
    if (*life <= 0) return Error{Code::kNotFound, "the lease is over"};
    return std::chrono::seconds(*life);
  }

  Status RevokeLease(int64_t lease) override {
    KVC_TRY(Call("lease/revoke", {{"ID", std::to_string(lease)}}));
    return {};
  }

  Status Watch(std::string_view prefix, int64_t revision, Millis idle,
               const std::function<bool(bool)>& changed) override;

 private:
  std::unique_ptr<httplib::Client> ClientOf(const std::string& endpoint, Millis read_timeout) const;
  Result<Json> Call(const std::string& method, const Json& request);
  // Where the key's last change was `revision`; false: it was not.
  Result<bool> DoIf(std::string_view key, int64_t revision, const Json& action);

  const EtcdOptions options_;
  std::atomic<size_t> last_good_{0};
};

std::unique_ptr<httplib::Client> GatewayClient::ClientOf(const std::string& endpoint,
                                                         Millis read_timeout) const {
  const bool tls = !options_.authority.empty();
  const std::string url = (tls ? "https://" : "http://") + endpoint;
  auto client = tls ? std::make_unique<httplib::Client>(url, options_.certificate, options_.key)
                    : std::make_unique<httplib::Client>(url);
  if (tls) {
    client->set_ca_cert_path(options_.authority.c_str());
    client->enable_server_certificate_verification(true);
  }
  client->set_connection_timeout(options_.timeout);
  client->set_read_timeout(read_timeout);
  client->set_write_timeout(options_.timeout);
  client->set_tcp_nodelay(true);
  return client;
}

Result<Json> GatewayClient::Call(const std::string& method, const Json& request) {
  const size_t first = last_good_.load();
  std::string troubles;
  for (size_t i = 0; i < options_.endpoints.size(); ++i) {
    const size_t index = (first + i) % options_.endpoints.size();
    const std::string& endpoint = options_.endpoints[index];
    const auto client = ClientOf(endpoint, options_.timeout);
    httplib::Request post;
    post.method = "POST";
    post.path = "/v3/" + method;
    post.set_header("Content-Type", "application/json");
    post.body = request.dump();
    httplib::Response answer;
    httplib::Error error = httplib::Error::Success;
    const bool sent = client->send(post, answer, error);
    const Json body = Json::parse(answer.body, nullptr, /*allow_exceptions=*/false);
    // gRPC's trailers behind an error's body are more than httplib 0.11 reads: the body is whole.
    if (!sent && !(error == httplib::Error::Read && body.is_object())) {
      troubles += fmt::format("{}{}: {}", troubles.empty() ? "" : "; ", endpoint,
                              httplib::to_string(error));
      continue;
    }
    last_good_ = index;
    if (answer.status == 200 && body.is_object()) return body;
    std::string text = body.is_object() ? body.value("error", answer.body) : answer.body;
    // gRPC's codes, which the gateway maps to HTTP's: 5 is NOT_FOUND, 14 UNAVAILABLE.
    if (answer.status == 404) return Error{Code::kNotFound, std::move(text)};
    if (answer.status == 401 || answer.status == 403) {
      return Error{Code::kDenied, fmt::format("etcd {} refuses: {}", endpoint, text)};
    }
    if (answer.status == 400) return Error{Code::kInvalid, std::move(text)};
    troubles += fmt::format("{}{}: {}", troubles.empty() ? "" : "; ", endpoint, text);
  }
  return Error{Code::kUnavailable, fmt::format("no etcd answers ({})", troubles)};
}

Result<bool> GatewayClient::DoIf(std::string_view key, int64_t revision, const Json& action) {
  const Json compare{{"key", Base64(key)},
                     {"target", "MOD"},
                     {"result", "EQUAL"},
                     {"mod_revision", std::to_string(revision)}};
  KVC_TRY_ASSIGN(const Json answer, Call("kv/txn", {{"compare", Json::array({compare})},
                                                    {"success", Json::array({action})}}));
  const auto succeeded = answer.find("succeeded");
  if (succeeded == answer.end()) return false;
  if (!succeeded->is_boolean()) return NotEtcd("txn");
  return succeeded->get<bool>();
}

Status GatewayClient::Watch(std::string_view prefix, int64_t revision, Millis idle,
                            const std::function<bool(bool)>& changed) {
  int64_t seen = revision;
  while (true) {
    const std::string endpoint = options_.endpoints[last_good_.load() % options_.endpoints.size()];
    const auto client = ClientOf(endpoint, idle);
    httplib::Request request;
    request.method = "POST";
    request.path = "/v3/watch";
    request.set_header("Content-Type", "application/json");
    request.body = Json{{"create_request",
                         {{"key", Base64(prefix)},
                          {"range_end", Base64(EndOfPrefix(prefix))},
                          {"start_revision", std::to_string(seen + 1)}}}}
                       .dump();
    bool ended = false;
    Status broken;
    std::string line;  // answers come as one JSON object a line
    request.content_receiver = [&](const char* data, size_t length, uint64_t, uint64_t) {
      line.append(data, length);
      for (size_t end = line.find('\n'); end != std::string::npos; end = line.find('\n')) {
        const Json message = Json::parse(line.substr(0, end), nullptr, false);
        line.erase(0, end + 1);
        const Json result = message.is_object() ? message.value("result", Json()) : Json();
        if (!result.is_object() || result.value("canceled", false)) {
          broken = Error{Code::kUnavailable, "etcd ended the watch"};
          return false;
        }
        if (result.value("events", Json::array()).empty()) continue;  // it says: created
        const auto at = Integer(result.value("header", Json::object()), "revision");
        if (!at) {
          broken = NotEtcd("watch");
          return false;
        }
        seen = std::max(seen, *at);
        if (!changed(true)) {
          ended = true;
          return false;
        }
      }
      return line.size() < (1u << 20);
    };
    httplib::Response response;
    httplib::Error error = httplib::Error::Success;
    const bool sent = client->send(request, response, error);
    if (ended) return {};
    if (!broken.ok()) return broken;
    if (!sent && error != httplib::Error::Read) {
      return Error{Code::kUnavailable,
                   fmt::format("watching etcd {}: {}", endpoint, httplib::to_string(error))};
    }
    if (!changed(false)) return {};  // quiet for so long
  }
}

}  // namespace

Result<EtcdOptions> EtcdOptions::Parse(std::string_view url) {
  constexpr std::string_view kScheme = "etcd://";
  const std::string shape =
      fmt::format("'{}' is not etcd://HOST:PORT[,HOST:PORT]...", std::string(url));
  if (!url.starts_with(kScheme)) return Error{Code::kInvalid, shape};
  url.remove_prefix(kScheme.size());
  EtcdOptions options;
  while (!url.empty()) {
    const std::string_view one = url.substr(0, url.find(','));
    if (!ParseEndpoint(one)) return Error{Code::kInvalid, shape};
    options.endpoints.emplace_back(one);
    url.remove_prefix(std::min(url.size(), one.size() + 1));
  }
  if (options.endpoints.empty()) return Error{Code::kInvalid, shape};
  return options;
}

std::unique_ptr<EtcdClient> EtcdClient::Make(const EtcdOptions& options) {
  KVC_CHECK(!options.endpoints.empty());
  return std::make_unique<GatewayClient>(options);
}

}  // namespace kvcfs::meta
