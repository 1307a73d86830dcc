//! Where a configuration is written: in a file, or nowhere, where the environment of a pod says all there is to say.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use underpass_config::Role;

/// What stands for a file that is not there: with istiod, everything else has a default.
const NOTHING_WRITTEN: &str = "node: {istiod: {}}";

/// Where a configuration is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In this file.
    File(PathBuf),
    /// Nowhere.
    Environment,
}

/// A role means nothing without a file.
#[derive(Debug, thiserror::Error)]
#[error("without a file a proxy in the role `{}` does nothing; give --config FILE, or --role node or --role waypoint in a pod of an Istio mesh", role.word())]
pub struct NeedsFile {
    role: Role,
}

impl Origin {
    /// The file that was named on the command line, if any was.
    ///
    /// # Errors
    /// When none was, and `role` has nothing to do without.
    pub fn named(file: Option<PathBuf>, role: Role) -> Result<Self, NeedsFile> {
        match (file, role) {
            (Some(file), _) => Ok(Self::File(file)),
            (None, Role::Node | Role::Waypoint) => Ok(Self::Environment),
            (None, Role::Standalone) => Err(NeedsFile { role }),
        }
    }

    /// The file, if there is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Environment => None,
        }
    }

    /// What is written.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn read(&self) -> io::Result<String> {
        match self {
            Self::File(path) => std::fs::read_to_string(path),
            Self::Environment => Ok(NOTHING_WRITTEN.to_owned()),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Environment => f.write_str("what the environment says"),
        }
    }
}
