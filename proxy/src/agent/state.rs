//! What the agent remembers on disk: which namespaces are pods, so that the next agent finds them.
//!
//! The kernel's maps say the rest. The file is written before a pod is enrolled in the kernel and after it is removed there, so that
//! the kernel never knows a pod that the file does not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::namespace::{Identity, Place};

const VERSION: u32 = 1;

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file operation failed.
    #[error("the state {} cannot be {doing}: {source}; the agent needs a writable --run-dir", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file is not what an agent of this version wrote.
    #[error(
        "the state {} cannot be understood ({problem}); enrolled pods stay refused: `underpass detach` frees them all, or remove \
         the file and enrol them again",
        path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// One enrolled pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The workload.
    pub uid: String,
    /// Where its namespace is found.
    pub place: Place,
    /// What that namespace is.
    pub identity: Identity,
    /// The namespace's cookie.
    pub cookie: u64,
    /// The pod's place in the kernel's table of listeners.
    pub slot: u32,
    /// When it was enrolled, in seconds since 1970.
    pub since: u64,
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    pods: Vec<Record>,
}

/// The file of one run directory.
#[derive(Clone, Debug)]
pub struct StateFile(PathBuf);

impl StateFile {
    /// The state of the agent of this run directory.
    pub fn of(run_dir: &Path) -> Self {
        Self(run_dir.join("state.json"))
    }

    /// The pods that were enrolled last; none if there never was an agent.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn load(&self) -> Result<Vec<Record>, StateError> {
        let text = match fs::read(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            outcome => outcome.map_err(self.failed("read"))?,
        };
        let unreadable = |problem: String| StateError::Unreadable {
            path: self.0.clone(),
            problem,
        };
        let document: Document = serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
        if document.version != VERSION {
            return Err(unreadable(format!("it is of version {}", document.version)));
        }
        Ok(document.pods)
    }

    /// Replaces the file in one step.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, pods: Vec<Record>) -> Result<(), StateError> {
        let document = Document { version: VERSION, pods };
        let text = serde_json::to_vec_pretty(&document).map_err(|error| self.failed("written")(error.into()))?;
        let beside = self.0.with_extension("json.new");
        fs::write(&beside, text).map_err(self.failed("written"))?;
        fs::rename(&beside, &self.0).map_err(self.failed("written"))
    }

    /// Forgets everything.
    pub fn remove(&self) {
        let _ = fs::remove_file(&self.0);
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(io::Error) -> StateError + use<> {
        let path = self.0.clone();
        move |source| StateError::Io { doing, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded_and_what_is_garbled_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::of(folder.path());
        assert_eq!(file.load().unwrap(), []);
        let record = Record {
            uid: "Kubernetes//Pod/shop/web".into(),
            place: Place::Netns("/run/netns/web".into()),
            identity: Identity::at(Path::new("/")).unwrap(),
            cookie: 7,
            slot: 3,
            since: 1_700_000_000,
        };
        file.save(vec![record.clone()]).unwrap();
        assert_eq!(file.load().unwrap(), [record]);
        fs::write(folder.path().join("state.json"), "{\"version\": 9, \"pods\": []}").unwrap();
        assert!(file.load().unwrap_err().to_string().contains("version 9"));
        fs::write(folder.path().join("state.json"), "{").unwrap();
        assert!(file.load().unwrap_err().to_string().contains("underpass detach"));
        file.remove();
        assert_eq!(file.load().unwrap(), []);
    }
}
