//! Istio's CA: `IstioCertificateService` of istiod.
//!
//! What its recorded behaviour decides (`istio/scenarios/13-certificates` of the project's recordings): an identity
//! that is not our own is asked for with our token (bound to our pod) and the `clusterid` header, never with a client
//! certificate; the CA takes the identity from there and not from the request; every refusal has the same words.

use std::time::Duration;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::OnceCell;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use underpass_config::Identity;

use crate::certificate::{CertificateError, WorkloadCertificate};
use crate::istiod::Istiod;
use crate::proto::IstioCertificateRequest;
use crate::proto::istio_certificate_service_client::IstioCertificateServiceClient;
use crate::request::request;
use crate::source::{CertificateSource, Pending, SourceError};

/// The CA in istiod.
#[derive(Debug)]
pub struct IstioCa {
    istiod: Istiod,
    settings: IstioCaSettings,
    /// Connects again by itself, with the roots of that time.
    channel: OnceCell<Channel>,
}

/// How the CA is asked.
#[derive(Clone, Debug)]
pub struct IstioCaSettings {
    /// The cluster, by the name istiod knows it by. Without the right one, nobody else's identity is given.
    pub cluster_id: String,
    /// The identity that our token stands for: asked for without impersonation.
    pub own_identity: Option<Identity>,
    /// How long certificates should be valid. istiod refuses more than 90 days.
    pub validity: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

impl IstioCaSettings {
    /// For a cluster, with Istio's defaults.
    pub fn new(cluster_id: impl Into<String>) -> Self {
        Self {
            cluster_id: cluster_id.into(),
            own_identity: None,
            validity: Duration::from_secs(24 * 60 * 60),
            timeout: Duration::from_secs(10),
        }
    }
}

impl IstioCa {
    /// The CA in `istiod`.
    pub fn new(istiod: Istiod, settings: IstioCaSettings) -> Self {
        Self {
            istiod,
            settings,
            channel: OnceCell::new(),
        }
    }

    async fn sign(&self, identity: &Identity, csr: String) -> Result<Vec<String>, SourceError> {
        let impersonated = self.settings.own_identity.as_ref() != Some(identity);
        let mut request = Request::new(IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(self.settings.validity.as_secs()).unwrap_or(i64::MAX),
            metadata: impersonated.then(|| impersonate(identity)),
        });
        request.set_timeout(self.settings.timeout);
        let cluster: MetadataValue<Ascii> = self.settings.cluster_id.parse().map_err(|_| SourceError::Invalid {
            message: format!("`{}` is not a cluster id", self.settings.cluster_id),
        })?;
        request.metadata_mut().insert("clusterid", cluster);
        if let Some(token) = self.istiod.authorization().await? {
            request.metadata_mut().insert("authorization", token);
        }
        let channel = self.channel.get_or_try_init(|| self.istiod.connect()).await?;
        let mut client = IstioCertificateServiceClient::new(channel.clone());
        let answer = tokio::time::timeout(self.settings.timeout, client.create_certificate(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
        answer
            .map(|answer| answer.into_inner().cert_chain)
            .map_err(|status| refusal(&status))
    }
}

impl CertificateSource for IstioCa {
    fn obtain<'a>(&'a self, identity: &'a Identity) -> Pending<'a, Result<WorkloadCertificate, SourceError>> {
        Box::pin(async move {
            let (key, csr) = request(identity)?;
            let answer = self.sign(identity, csr).await?;
            let (chain, roots) = chain_and_roots(&answer)?;
            Ok(WorkloadCertificate::new(identity, chain, key, roots)?)
        })
    }
}

type Certificates = Vec<CertificateDer<'static>>;

/// Takes the CA's answer apart: the certificate, intermediates, and as the last text the root, or several during a
/// rotation.
pub fn chain_and_roots(answer: &[String]) -> Result<(Certificates, Certificates), CertificateError> {
    let Some((roots, chain @ [_, ..])) = answer.split_last() else {
        return Err(CertificateError::Unreadable(format!(
            "the CA sent {} texts; a certificate and a root are two",
            answer.len()
        )));
    };
    let parse = |pem: &String| {
        CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| CertificateError::Unreadable(error.to_string()))
    };
    let chain: Vec<_> = chain.iter().map(parse).collect::<Result<_, _>>()?;
    Ok((chain.concat(), parse(roots)?))
}

fn impersonate(identity: &Identity) -> Struct {
    let value = Value {
        kind: Some(Kind::StringValue(identity.to_string())),
    };
    Struct {
        fields: [("ImpersonatedIdentity".to_owned(), value)].into(),
    }
}

fn refusal(status: &Status) -> SourceError {
    let message = status.message().to_owned();
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => SourceError::Unauthenticated { message },
        Code::InvalidArgument => SourceError::Invalid { message },
        code => SourceError::Unavailable {
            message: format!("{code:?}: {message}"),
        },
    }
}
