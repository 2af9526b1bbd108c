//! A client for one request to the API server, with just the ways to show who asks that
//! a node's kubeconfig uses: a token, a file with one, or a certificate. What kube offers
//! besides (programs that print tokens, providers of clouds) would start programs on the
//! node, and is a tenth of the binary.

use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper_rustls::{ConfigBuilderExt, FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::config::AuthInfo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use secrecy::ExposeSecret;
use tower::{BoxError, ServiceBuilder};

use super::kubeconfig::Unsupported;
use super::resolver::Resolver;

/// What is wrong with a kubeconfig's contents.
pub type Problem = Box<dyn std::error::Error + Send + Sync>;

/// Connects as the kubeconfig says.
pub fn client(config: &kube::Config) -> Result<kube::Client, Problem> {
    let mut http = HttpConnector::new_with_resolver(Resolver);
    http.enforce_http(false);
    http.set_nodelay(true);
    let mut https = HttpsConnectorBuilder::new().with_tls_config(tls(config)?).https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = ServerName::try_from(name.clone())?;
        https = https.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let https = https.enable_http1().wrap_connector(http);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .map_err(BoxError::from)
        .service(HttpClient::builder(TokioExecutor::new()).build::<_, kube::client::Body>(https));
    Ok(kube::Client::new(service, config.default_namespace.clone()))
}

/// Whom to believe, and the certificate to show, if there is one.
fn tls(config: &kube::Config) -> Result<ClientConfig, Problem> {
    if config.accept_invalid_certs {
        return Err(Unsupported("insecure-skip-tls-verify is not supported: the token would go to whoever answers; give the certificate-authority").into());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = match &config.root_cert {
        Some(certificates) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates {
                roots.add(CertificateDer::from(certificate.clone()))?;
            }
            builder.with_root_certificates(roots)
        }
        None => builder.with_native_roots()?,
    };
    let AuthInfo { client_certificate, client_certificate_data, client_key, client_key_data, .. } = &config.auth_info;
    let key_data = client_key_data.as_ref().map(|data| data.expose_secret());
    let certificate = pem("client-certificate", client_certificate.as_deref(), client_certificate_data.as_deref())?;
    match (certificate, pem("client-key", client_key.as_deref(), key_data)?) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(certificate), Some(key)) => {
            let chain = CertificateDer::pem_slice_iter(&certificate).collect::<Result<Vec<_>, _>>()?;
            Ok(builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&key)?)?)
        }
        _ => Err("client-certificate and client-key are of use only together".into()),
    }
}

/// What is in the kubeconfig itself, or in the file that it names.
fn pem(what: &str, path: Option<&str>, data: Option<&str>) -> Result<Option<Vec<u8>>, Problem> {
    match (data, path) {
        (Some(data), _) => Ok(Some(STANDARD.decode(data.trim()).map_err(|e| format!("{what}-data: {e}"))?)),
        (None, Some(path)) => read(what, path).map(Some),
        (None, None) => Ok(None),
    }
}

fn read(what: &str, path: &str) -> Result<Vec<u8>, Problem> {
    std::fs::read(Path::new(path)).map_err(|e| format!("{what}: cannot read {path}: {e}").into())
}

/// The value of the Authorization header, read anew for every request.
pub fn authorization(user: &AuthInfo) -> Result<Option<String>, Problem> {
    if user.exec.is_some() || user.auth_provider.is_some() || user.username.is_some() {
        return Err(Unsupported("its user has an exec, auth-provider or username; the plugin takes a token, tokenFile or client-certificate").into());
    }
    let token = match (&user.token_file, &user.token) {
        (Some(path), _) => String::from_utf8(read("tokenFile", path)?)?,
        (None, Some(token)) => token.expose_secret().to_owned(),
        (None, None) => return Ok(None),
    };
    Ok(Some(format!("Bearer {}", token.trim())))
}
