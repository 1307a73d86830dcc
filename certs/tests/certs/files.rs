//! Certificates, roots and revocations from files.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use underpass_certs::{
    CertificateFiles, CertificateSource, IdentityStore, StoreSettings, Trust, TrustDomains, TrustFiles,
};

use crate::authority::{Authority, HOUR, Paper, identity};

#[tokio::test]
async fn replacing_the_files_replaces_certificate_and_trust() {
    let (old, new) = (Authority::new(), Authority::new());
    let db = identity("shop", "db");
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let write = |authority: &Authority, serial| {
        let paper = Paper {
            serial,
            ..Paper::of(&db, SystemTime::now(), HOUR)
        };
        let (chain, key) = authority.issue_pem(&paper);
        std::fs::write(path("chain.pem"), chain).unwrap();
        std::fs::write(path("key.pem"), key).unwrap();
        std::fs::write(path("roots.pem"), &authority.root_pem).unwrap();
    };
    write(&old, 1);
    let files = CertificateFiles {
        chain: path("chain.pem"),
        key: path("key.pem"),
    };
    let trust_files = TrustFiles {
        roots: Some(path("roots.pem")),
        revocations: None,
    };
    let trust = Arc::new(Trust::new(TrustDomains::new("cluster.local", [])));
    trust_files.load(&trust).await.unwrap();
    let (store, serving) = IdentityStore::new(Arc::new(files.clone()), trust.clone(), StoreSettings::default());
    let serving = tokio::spawn(serving);
    let lease = store.hold(&db);
    assert_eq!(lease.ready(Duration::from_secs(30)).await.unwrap().serial(), "01");
    assert_eq!(trust.roots(), 1);

    write(&new, 2);
    assert_eq!(files.obtain(&db).await.unwrap().serial(), "02");
    assert!(files.ask_again_after().is_some(), "the store looks by itself");
    let somebody_else = files.obtain(&identity("shop", "web")).await.unwrap_err();
    assert!(somebody_else.to_string().contains("not for"), "{somebody_else}");

    std::fs::write(path("roots.pem"), "nothing").unwrap();
    let error = trust_files.load(&trust).await.unwrap_err();
    assert!(error.to_string().contains("roots.pem: no certificate"), "{error}");
    assert_eq!(trust.roots(), 1, "what was believed still is");
    std::fs::write(path("key.pem"), "nothing").unwrap();
    let error = files.obtain(&db).await.unwrap_err();
    assert!(error.to_string().contains("key.pem"), "{error}");
    serving.abort();
}
