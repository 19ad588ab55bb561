#include "rdma/tls.h"

#include <algorithm>
#include <ctime>

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

namespace kvcfs::rdma {
namespace {

constexpr std::string_view kScheme = "kvcfs://";

std::string LastErrors() {
  std::string text;
  while (const unsigned long code = ERR_get_error()) {
    char line[256];
    ERR_error_string_n(code, line, sizeof(line));
    if (!text.empty()) text += "; ";
    text += line;
  }
  return text.empty() ? "no reason given" : text;
}

bool IsName(std::string_view text) {
  const bool plain =
      std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < 127; });
  return plain && !text.empty() && text.size() <= 255 &&
         text.find_first_of("/?#,&=%") == std::string_view::npos;
}

Result<PeerIdentity> IdentityOf(X509* certificate) {
  auto* names = static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr));
  Result<PeerIdentity> identity = Error{Code::kDenied, "the certificate has no kvcfs:// name"};
  for (int i = 0; names != nullptr && i < sk_GENERAL_NAME_num(names); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names, i);
    if (name->type != GEN_URI) continue;
    const ASN1_STRING* text = name->d.uniformResourceIdentifier;
    const std::string_view uri(reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)),
                               static_cast<size_t>(ASN1_STRING_length(text)));
    if (!uri.starts_with(kScheme)) continue;
    identity = ParseIdentityUri(uri);
    break;
  }
  GENERAL_NAMES_free(names);
  return identity;
}

}  // namespace

Result<std::unique_ptr<TlsContext>> TlsContext::Make(const TlsOptions& options) {
  if (options.certificate.empty() || options.key.empty() || options.authority.empty()) {
    return Error{Code::kInvalid, "TLS wants all of --tls-cert, --tls-key and --tls-ca"};
  }
  ERR_clear_error();
  std::unique_ptr<TlsContext> made(new TlsContext);
  made->context_ = SSL_CTX_new(TLS_method());
  KVC_CHECK(made->context_ != nullptr);
  SSL_CTX* context = made->context_;
  SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  // Every handshake verifies: no sessions are resumed, and no tickets sent.
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(context, 0);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  if (SSL_CTX_use_certificate_chain_file(context, options.certificate.c_str()) != 1) {
    return Error{Code::kInvalid,
                 fmt::format("--tls-cert {}: {}", options.certificate, LastErrors())};
  }
  if (SSL_CTX_use_PrivateKey_file(context, options.key.c_str(), SSL_FILETYPE_PEM) != 1 ||
      SSL_CTX_check_private_key(context) != 1) {
    return Error{Code::kInvalid, fmt::format("--tls-key {}: {}", options.key, LastErrors())};
  }
  if (SSL_CTX_load_verify_locations(context, options.authority.c_str(), nullptr) != 1) {
    return Error{Code::kInvalid, fmt::format("--tls-ca {}: {}", options.authority, LastErrors())};
  }
  return made;
}

TlsContext::~TlsContext() {
  SSL_CTX_free(context_);
}

std::unique_ptr<TlsSession> TlsContext::NewSession(bool server) const {
  SSL* ssl = SSL_new(context_);
  KVC_CHECK(ssl != nullptr);
  if (server) {
    SSL_set_accept_state(ssl);
  } else {
    SSL_set_connect_state(ssl);
  }
  return std::unique_ptr<TlsSession>(new TlsSession(ssl));
}

TlsSession::TlsSession(ssl_st* ssl)
    : ssl_(ssl), in_(BIO_new(BIO_s_mem())), out_(BIO_new(BIO_s_mem())) {
  KVC_CHECK(in_ != nullptr && out_ != nullptr);
  BIO_set_mem_eof_return(in_, -1);  // empty is not the end
  SSL_set_bio(ssl_, in_, out_);
}

TlsSession::~TlsSession() {
  SSL_free(ssl_);
}

void TlsSession::Feed(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  const int taken = BIO_write(in_, bytes.data(), static_cast<int>(bytes.size()));
  KVC_CHECK(taken == static_cast<int>(bytes.size()));
}

Error TlsSession::Failure(int result, std::string_view what) {
  const int kind = SSL_get_error(ssl_, result);
  if (kind == SSL_ERROR_ZERO_RETURN) return {Code::kUnavailable, "the peer ended TLS"};
  const long verified = SSL_get_verify_result(ssl_);
  std::string text = LastErrors();
  if (verified != X509_V_OK) {
    text = fmt::format("certificate: {} ({})", X509_verify_cert_error_string(verified), text);
  }
  return {Code::kDenied, fmt::format("TLS {}: {}", what, text)};
}

Status TlsSession::Handshake() {
  if (ready_) return {};
  ERR_clear_error();
  const int result = SSL_do_handshake(ssl_);
  if (result == 1) {
    ready_ = true;
    return {};
  }
  const int kind = SSL_get_error(ssl_, result);
  if (kind == SSL_ERROR_WANT_READ || kind == SSL_ERROR_WANT_WRITE) return {};
  return Failure(result, "handshake");
}

Result<size_t> TlsSession::Read(std::span<std::byte> into) {
  KVC_TRY(Handshake());
  if (!ready_) return size_t{0};
  ERR_clear_error();
  size_t bytes = 0;
  const int result = SSL_read_ex(ssl_, into.data(), into.size(), &bytes);
  if (result == 1) return bytes;
  const int kind = SSL_get_error(ssl_, result);
  if (kind == SSL_ERROR_WANT_READ || kind == SSL_ERROR_WANT_WRITE) return size_t{0};
  return Failure(result, "stream");
}

Status TlsSession::Write(std::span<const std::byte> bytes) {
  KVC_CHECK(ready_);
  while (!bytes.empty()) {
    ERR_clear_error();
    size_t written = 0;
    const int result = SSL_write_ex(ssl_, bytes.data(), bytes.size(), &written);
    if (result != 1) return Failure(result, "stream");
    bytes = bytes.subspan(written);
  }
  return {};
}

void TlsSession::TakeOutput(Bytes& out) {
  char* data = nullptr;
  const long bytes = BIO_get_mem_data(out_, &data);
  if (bytes <= 0) return;
  const auto view = std::as_bytes(std::span(data, static_cast<size_t>(bytes)));
  out.insert(out.end(), view.begin(), view.end());
  (void)BIO_reset(out_);
}

Result<PeerIdentity> TlsSession::Identity() const {
  X509* certificate = SSL_get0_peer_certificate(ssl_);
  if (certificate == nullptr) return Error{Code::kDenied, "the peer showed no certificate"};
  return IdentityOf(certificate);
}

int64_t TlsSession::ValidUntil() const {
  X509* certificate = SSL_get0_peer_certificate(ssl_);
  tm time{};
  if (certificate == nullptr || ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &time) != 1) {
    return 0;
  }
  return ::timegm(&time);
}

Result<PeerIdentity> TlsContext::Identity() const {
  X509* certificate = SSL_CTX_get0_certificate(context_);
  KVC_CHECK(certificate != nullptr);
  return IdentityOf(certificate);
}

Result<PeerIdentity> ParseIdentityUri(std::string_view uri) {
  const Error wrong{Code::kDenied, fmt::format("'{}' is not kvcfs://node/NAME or "
                                               "kvcfs://client/NAME?namespaces=A,B",
                                               uri)};
  if (!uri.starts_with(kScheme)) return wrong;
  std::string_view rest = uri.substr(kScheme.size());
  PeerIdentity identity;
  if (rest.starts_with("node/")) {
    identity.is_node = true;
    rest.remove_prefix(5);
  } else if (rest.starts_with("client/")) {
    rest.remove_prefix(7);
  } else {
    return wrong;
  }
  const size_t question = rest.find('?');
  const std::string_view name = rest.substr(0, question);
  if (!IsName(name)) return wrong;
  identity.name = name;
  if (question == std::string_view::npos) return identity;
  std::string_view query = rest.substr(question + 1);
  constexpr std::string_view kNamespaces = "namespaces=";
  if (!query.starts_with(kNamespaces)) return wrong;
  query.remove_prefix(kNamespaces.size());
  identity.all_namespaces = false;
  while (!query.empty()) {
    const size_t comma = std::min(query.find(','), query.size());
    if (!IsName(query.substr(0, comma))) return wrong;
    identity.namespaces.emplace_back(query.substr(0, comma));
    query.remove_prefix(std::min(comma + 1, query.size()));
  }
  return identity;
}

}  // namespace kvcfs::rdma
