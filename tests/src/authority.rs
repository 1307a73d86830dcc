//! A certificate authority of a test, whose certificates are files.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// A root, its key, and where it puts what it issues.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
}

/// A certificate with its key, as files in PEM.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Whose it is.
    pub identity: String,
    /// The certificate.
    pub chain: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Authority {
    /// One that puts its files into `folder`, which is made.
    pub fn new(folder: &Path) -> Self {
        fs::create_dir_all(folder).expect("a folder for certificates");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        // Roots of one test are told from each other by their names, too.
        let name = format!("root of {}", folder.display());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).expect("a root");
        fs::write(folder.join("roots.pem"), certificate.pem()).expect("write the root");
        Self {
            issuer: Issuer::new(params, key),
            folder: folder.to_owned(),
        }
    }

    /// The file with the root.
    pub fn roots(&self) -> PathBuf {
        self.folder.join("roots.pem")
    }

    /// Its private key, in PEM.
    pub(crate) fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A certificate of the service account `namespace/name` in the trust domain `cluster.local`.
    pub fn issue(&self, account: &str) -> Issued {
        let (namespace, name) = account.split_once('/').expect("namespace/name");
        let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/{name}");
        let uri = SanType::URI(identity.as_str().try_into().expect("a URI"));
        self.issue_as(&identity, uri, &format!("{namespace}-{name}"))
    }

    /// A certificate of the host `name`, as servers outside the mesh show one.
    pub fn issue_to_host(&self, name: &str) -> Issued {
        let dns = SanType::DnsName(name.try_into().expect("a name"));
        self.issue_as(name, dns, name)
    }

    fn issue_as(&self, identity: &str, subject: SanType, file: &str) -> Issued {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![subject];
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let path = |kind: &str| self.folder.join(format!("{file}.{kind}.pem"));
        let issued = Issued {
            identity: identity.to_owned(),
            chain: path("chain"),
            key: path("key"),
        };
        fs::write(&issued.chain, certificate.pem()).expect("write the certificate");
        fs::write(&issued.key, key.serialize_pem()).expect("write the key");
        issued
    }

    /// The fields of `node.identities` with these accounts' certificates.
    pub fn identities(&self, accounts: &[&str]) -> String {
        let certificate = |account: &&str| {
            let Issued { identity, chain, key } = self.issue(account);
            format!("{{identity: {identity:?}, chain: {chain:?}, key: {key:?}}}")
        };
        let certificates: Vec<String> = accounts.iter().map(certificate).collect();
        format!(
            "{{roots: {:?}, certificates: [{}]}}",
            self.roots(),
            certificates.join(", ")
        )
    }
}
