//! Host names of API servers. A static binary has no name service switch, and most
//! kubeconfigs name an address anyway: nothing is set up until a name turns up.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use hickory_resolver::Resolver as Dns;
use hyper_util::client::legacy::connect::dns::Name;
use tower::Service;

/// Asks /etc/hosts and the servers of /etc/resolv.conf.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resolver;

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(async move {
            let failed = |e| io::Error::other(format!("cannot resolve {}: {e}", name.as_str()));
            let dns = Dns::builder_tokio().and_then(|builder| builder.build()).map_err(failed)?;
            let found = dns.lookup_ip(name.as_str()).await.map_err(failed)?;
            Ok(found.iter().map(|address| SocketAddr::new(address, 0)).collect::<Vec<_>>().into_iter())
        })
    }
}
