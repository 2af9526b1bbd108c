//! A client for one request to the API server, with just the ways to show who asks that
//! a node's kubeconfig uses: a token, a file with one, or a certificate. What kube offers
//! besides (programs that print tokens, providers of clouds) would start programs on the
//! node, and is a tenth of the binary.

use std::error::Error;
use std::fmt::Write;
use std::sync::Arc;

use http::HeaderValue;
use http::header::{ACCEPT, AUTHORIZATION};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper_rustls::{ConfigBuilderExt, FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::Body;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use secrecy::ExposeSecret;

use super::access::{Access, Problem};
use super::resolver::Resolver;

/// The longest answer, in bytes: etcd keeps nothing over 1.5 MiB unless configured otherwise, and a pod
/// may be longer as JSON.
const LONGEST: usize = 8 << 20;

/// The API server's answer, which may be a refusal.
pub(crate) struct HttpAnswer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// Why there is no answer.
pub(crate) enum NoAnswer {
    /// The kubeconfig cannot be used for it.
    Unusable(Problem),
    /// Connecting failed, TLS did not verify, or the connection broke.
    Failed(String),
    TooLong,
}

impl From<Problem> for NoAnswer {
    fn from(problem: Problem) -> Self {
        Self::Unusable(problem)
    }
}

/// An error with its causes, without those that only name a layer of the client.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let is_wrapping =
        |error: &(dyn Error + 'static)| error.is::<kube::Error>() || error.is::<hyper_util::client::legacy::Error>();
    let mut error = error;
    while let Some(cause) = error.source().filter(|_| is_wrapping(error)) {
        error = cause;
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Sends a GET request for a path.
///
/// # Errors
/// There is no whole answer; a refusal is an answer.
pub(crate) async fn get(access: &Access, path: &str) -> Result<HttpAnswer, NoAnswer> {
    let client = connect(access)?;
    let mut request = http::Request::get(format!("{}{path}", access.server));
    request = request.header(ACCEPT, "application/json");
    // What these are made of was looked at before.
    let wrong = |_| Problem::new("it makes no request");
    if let Some(token) = &access.token {
        let value = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()));
        let mut value = value.map_err(|e| wrong(e.into()))?;
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    let request = request.body(Body::empty()).map_err(wrong)?;
    let failed = |error: &(dyn Error + 'static)| NoAnswer::Failed(chain(error));
    let answer = client.send(request).await.map_err(|e| failed(&e))?;
    let status = answer.status().as_u16();
    match Limited::new(answer.into_body(), LONGEST).collect().await {
        Ok(body) => Ok(HttpAnswer { status, body: body.to_bytes().into() }),
        Err(e) if e.is::<LengthLimitError>() => Err(NoAnswer::TooLong),
        Err(e) => Err(failed(&*e)),
    }
}

/// A client that sends requests over TLS.
pub(crate) type Https = HttpClient<hyper_rustls::HttpsConnector<HttpConnector<Resolver>>, Body>;

/// Connects as the kubeconfig says.
fn connect(access: &Access) -> Result<kube::Client, Problem> {
    Ok(kube::Client::new(https(access)?, "default"))
}

/// A client for the server of a kubeconfig, which trusts the kubeconfig's certificates and shows its
/// client certificate.
///
/// # Errors
/// A certificate, key or name in it is damaged.
pub(crate) fn https(access: &Access) -> Result<Https, Problem> {
    let mut http = HttpConnector::new_with_resolver(Resolver);
    http.enforce_http(false);
    http.set_nodelay(true);
    // Whether the server may be one without TLS was settled before.
    let mut https = HttpsConnectorBuilder::new().with_tls_config(tls(access)?).https_or_http();
    if let Some(name) = &access.tls_name {
        let name = ServerName::try_from(name.clone());
        let name = name.map_err(|_| Problem::new("the cluster's tls-server-name is no name of a host"))?;
        https = https.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let https = https.enable_http1().wrap_connector(http);
    Ok(HttpClient::builder(TokioExecutor::new()).build(https))
}

/// The certificates to trust, and the client certificate, if there is one. Errors of parsers may quote
/// what they read, so they are replaced.
fn tls(access: &Access) -> Result<ClientConfig, Problem> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| Problem::new(format!("TLS cannot be used: {e}")))?;
    let builder = match &access.authority {
        Some(pem) => {
            let wrong = || Problem::new("the cluster's certificate-authority holds no certificate in PEM form");
            let mut roots = RootCertStore::empty();
            for certificate in certificates(pem).ok_or_else(wrong)? {
                roots.add(certificate).map_err(|_| wrong())?;
            }
            builder.with_root_certificates(roots)
        }
        None => {
            let roots = builder.with_native_roots();
            roots.map_err(|e| {
                Problem::new(format!(
                    "the cluster has no certificate-authority, and the system's certificates cannot be used: {e}"
                ))
            })?
        }
    };
    let Some(own) = &access.certificate else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates(&own.chain)
        .ok_or_else(|| Problem::new("the user's client-certificate holds no certificate in PEM form"))?;
    let key = PrivateKeyDer::from_pem_slice(own.key.expose_secret())
        .map_err(|_| Problem::new("the user's client-key holds no private key in PEM form"))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|_| Problem::new("the user's client-certificate and client-key do not belong together"))
}

/// The certificates in a text; `None` if there is none, or one is damaged.
fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let all: Vec<CertificateDer> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()?;
    Some(all).filter(|all| !all.is_empty())
}
