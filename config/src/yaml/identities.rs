//! The `node.identities:` section.

use std::collections::HashMap;

use foldhash::quality::RandomState;
use serde::Deserialize;

use super::reading::{Path, Reading};
use super::scalar::Scalar;
use crate::{CertificateFile, Identity, IdentitySettings, Surroundings};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct IdentitiesShape<'a> {
    #[serde(borrow)]
    trust_domain: Option<Scalar<'a>>,
    trust_domain_aliases: Vec<Scalar<'a>>,
    certificates: Vec<CertificateShape<'a>>,
    roots: Option<Scalar<'a>>,
    revocations: Option<Scalar<'a>>,
    validity: Option<Scalar<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CertificateShape<'a> {
    #[serde(borrow)]
    identity: Scalar<'a>,
    chain: Scalar<'a>,
    key: Scalar<'a>,
}

impl IdentitiesShape<'_> {
    pub(super) fn compile(
        &self,
        surroundings: &Surroundings,
        path: Path<'_>,
        reading: &mut Reading,
    ) -> IdentitySettings {
        let default = IdentitySettings::default();
        let aliases_path = path.field("trust_domain_aliases");
        let aliases = self.trust_domain_aliases.iter().enumerate();
        let aliases = aliases.map(|(index, alias)| reading.name(aliases_path.item(index), alias));
        let aliases = aliases.collect();
        let validity = reading.duration(path.field("validity"), self.validity.as_ref(), default.validity);
        if validity > IdentitySettings::LONGEST_VALIDITY {
            let written = self.validity.as_ref().map_or("", |value| value);
            let remedy = "istiod gives at most 90 days: write 90days or less";
            reading.report(path.field("validity"), written, "is too long", remedy);
        }
        let certificates = self.certificates(path.field("certificates"), reading);
        if !certificates.is_empty() && self.roots.is_none() {
            let remedy = "add `roots:`, the file with the certificates that issued them and those of peers";
            reading.report(path, "", "with certificates from files nobody is believed", remedy);
        }
        IdentitySettings {
            trust_domain: reading.name_or(
                path.field("trust_domain"),
                self.trust_domain.as_ref(),
                surroundings.trust_domain.as_ref().unwrap_or(&default.trust_domain),
            ),
            trust_domain_aliases: aliases,
            certificates,
            roots: (self.roots.as_ref()).and_then(|value| reading.absolute(path.field("roots"), value)),
            revocations: (self.revocations.as_ref())
                .and_then(|value| reading.absolute(path.field("revocations"), value)),
            validity,
        }
    }

    fn certificates(&self, path: Path<'_>, reading: &mut Reading) -> Vec<CertificateFile> {
        let mut known: HashMap<Identity, usize, RandomState> = HashMap::default();
        let mut certificates = Vec::with_capacity(self.certificates.len());
        for (index, shape) in self.certificates.iter().enumerate() {
            let path = path.item(index);
            let chain = reading.absolute(path.field("chain"), &shape.chain);
            let key = reading.absolute(path.field("key"), &shape.key);
            let identity: Identity = match shape.identity.parse() {
                Ok(identity) => identity,
                Err(error) => {
                    let remedy = "write for example spiffe://cluster.local/ns/shop/sa/web";
                    reading.report(path.field("identity"), &shape.identity, format!("{error}"), remedy);
                    continue;
                }
            };
            if let Some(first) = known.insert(identity.clone(), index) {
                let problem = format!("certificates[{first}] is already for this identity");
                reading.report(path.field("identity"), &shape.identity, problem, "remove one");
            }
            if let (Some(chain), Some(key)) = (chain, key) {
                certificates.push(CertificateFile { identity, chain, key });
            }
        }
        certificates
    }
}
