//! The cluster's certificate authority, everybody's certificates, and the kubeconfigs made
//! of them.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};
use serde_json::json;

use super::machine::{ADDRESS, API_SERVICE};
use crate::api::base64;

type Authority = CertifiedIssuer<'static, KeyPair>;

/// A file that only root reads.
fn secret(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

fn named(name: &str, groups: &[&str]) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    groups.iter().for_each(|group| subject.push(DnType::OrganizationName, *group));
    subject.push(DnType::CommonName, name);
    subject
}

/// A certificate of the authority for somebody, and its key.
fn certificate(authority: &Authority, name: &str, groups: &[&str], hosts: &[&str]) -> (String, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = named(name, groups);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = hosts
        .iter()
        .map(|host| match host.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName((*host).try_into().unwrap()),
        })
        .collect();
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, authority).unwrap().pem(), key.serialize_pem())
}

/// Writes every key, certificate and kubeconfig that the components need.
pub fn write(folder: &Path) {
    let pki = folder.join("pki");
    std::fs::create_dir(&pki).unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = named("cluster", &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(pki.join("ca.crt"), authority.pem()).unwrap();

    let kubernetes =
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", ADDRESS, API_SERVICE, "127.0.0.1"];
    for (file, name, groups, hosts) in [
        ("apiserver", "kube-apiserver", &[][..], &kubernetes[..]),
        ("kubelet-server", "node1", &[], &["node1", ADDRESS]),
        // Whom the kubelet lets in without asking: it asks the API server itself.
        ("kubelet-client", "kube-apiserver", &["system:masters"], &[]),
    ] {
        let (certificate, key) = certificate(&authority, name, groups, hosts);
        std::fs::write(pki.join(format!("{file}.crt")), certificate).unwrap();
        secret(&pki.join(format!("{file}.key")), &key);
    }
    let accounts = KeyPair::generate().unwrap();
    secret(&pki.join("accounts.key"), &accounts.serialize_pem());
    std::fs::write(pki.join("accounts.pub"), accounts.public_key_pem()).unwrap();

    for (file, name, groups) in [
        ("admin", "admin", &["system:masters"][..]),
        ("kubelet", "system:node:node1", &["system:nodes"]),
        ("controller-manager", "system:kube-controller-manager", &[]),
        ("scheduler", "system:kube-scheduler", &[]),
    ] {
        let (certificate, key) = certificate(&authority, name, groups, &[]);
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "context",
            "clusters": [{ "name": "cluster", "cluster": { "server": format!("https://{ADDRESS}:6443"), "certificate-authority-data": base64(&authority.pem()) } }],
            "users": [{ "name": "user", "user": { "client-certificate-data": base64(&certificate), "client-key-data": base64(&key) } }],
            "contexts": [{ "name": "context", "context": { "cluster": "cluster", "user": "user" } }],
        });
        secret(&folder.join(format!("{file}.conf")), &kubeconfig.to_string());
    }
}
