//! A CA of this process, and stores that get their certificates from it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason, RevokedCertParams, SanType, SerialNumber,
};
use rustls::crypto::aws_lc_rs::sign;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use tokio::task::JoinHandle;
use underpass_certs::{
    CertificateSource, Clock, IdentityStore, Lease, Pending, SourceError, StoreSettings, Trust, TrustDomains,
    WorkloadCertificate,
};
use underpass_config::Identity;

pub const HOUR: Duration = Duration::from_secs(3600);

pub fn identity(namespace: &str, account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
        .parse()
        .unwrap()
}

/// A root and its key.
pub struct Authority {
    pub root: CertificateDer<'static>,
    pub root_pem: String,
    pub issuer: Issuer<'static, KeyPair>,
}

/// What a certificate is to say.
#[derive(Clone)]
pub struct Paper {
    pub names: Vec<String>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    pub serial: u64,
}

impl Paper {
    /// For `identity`, from two minutes ago (as istiod does) for `life`.
    pub fn of(identity: &Identity, now: SystemTime, life: Duration) -> Self {
        Self {
            names: vec![identity.to_string()],
            not_before: now - Duration::from_secs(120),
            not_after: now + life,
            serial: 1,
        }
    }

    pub fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = self.not_before.into();
        params.not_after = self.not_after.into();
        params.serial_number = Some(SerialNumber::from(self.serial));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let uri = |name: &String| SanType::URI(name.as_str().try_into().unwrap());
        params.subject_alt_names = self.names.iter().map(uri).collect();
        params
    }
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap();
        Self {
            root: certificate.der().clone(),
            root_pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate and its key, both as PEM.
    pub fn issue_pem(&self, paper: &Paper) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = paper.params().signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// A certificate as the CA gives it out.
    pub fn issue(&self, identity: &Identity, paper: &Paper) -> WorkloadCertificate {
        let key = KeyPair::generate().unwrap();
        let certificate = paper.params().signed_by(&key, &self.issuer).unwrap();
        let encoded = PrivateKeyDer::Pkcs8(key.serialized_der().into());
        let key = sign::any_ecdsa_type(&encoded).unwrap();
        WorkloadCertificate::new(identity, vec![certificate.der().clone()], key, vec![self.root.clone()]).unwrap()
    }

    /// A list that revokes one serial number. Its time is past: it must revoke all the same.
    pub fn revoke(&self, serial: u64) -> CertificateRevocationListDer<'static> {
        let past = SystemTime::now() - 48 * HOUR;
        let params = CertificateRevocationListParams {
            this_update: past.into(),
            next_update: (past + HOUR).into(),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: past.into(),
                reason_code: Some(RevocationReason::KeyCompromise),
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().der().clone()
    }
}

/// Gives out what a closure makes.
pub struct Fixed<F>(pub F);

impl<F> CertificateSource for Fixed<F>
where
    F: Fn(&Identity) -> WorkloadCertificate + Send + Sync + 'static,
{
    fn obtain<'a>(&'a self, identity: &'a Identity) -> Pending<'a, Result<WorkloadCertificate, SourceError>> {
        Box::pin(async { Ok((self.0)(identity)) })
    }
}

pub fn trust_of(roots: &[&Authority], aliases: &[&str]) -> Arc<Trust> {
    let aliases = aliases.iter().map(|alias| (*alias).into());
    let trust = Trust::new(TrustDomains::new("cluster.local", aliases));
    trust
        .configure(roots.iter().map(|authority| authority.root.clone()).collect(), &[])
        .unwrap();
    Arc::new(trust)
}

/// A pod: its certificate, and the store behind it, which ends with it.
pub struct Pod {
    pub lease: Arc<Lease>,
    store: JoinHandle<()>,
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.store.abort();
    }
}

impl Pod {
    /// A pod that thinks it is `clock`, whatever its certificate is.
    pub async fn with(identity: &Identity, certificate: WorkloadCertificate, clock: Clock) -> Self {
        let certificate = std::sync::Mutex::new(Some(certificate));
        let source = Fixed(move |_: &Identity| certificate.lock().unwrap().take().unwrap());
        // What the pod's own issuer sends is of no interest to whom these tests trust.
        let own = Arc::new(Trust::new(TrustDomains::new("cluster.local", [])));
        let settings = StoreSettings {
            clock,
            ..Default::default()
        };
        let (store, serving) = IdentityStore::new(Arc::new(source), own, settings);
        let store_task = tokio::spawn(serving);
        let lease = Arc::new(store.hold(identity));
        lease.ready(Duration::from_secs(30)).await.unwrap();
        Self {
            lease,
            store: store_task,
        }
    }

    pub async fn of(authority: &Authority, identity: &Identity) -> Self {
        let paper = Paper::of(identity, SystemTime::now(), HOUR);
        Self::with(identity, authority.issue(identity, &paper), SystemTime::now).await
    }
}
