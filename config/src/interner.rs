//! Gives equal texts one allocation. A front end holds one while it builds resources and drops it afterwards: in a mesh
//! of a hundred thousand workloads, namespaces, nodes, zones and service names repeat far more often than they differ.

use std::collections::HashSet;

use foldhash::quality::RandomState;

use crate::Text;

/// Hands out the same [`Text`] for equal strings.
#[derive(Debug, Default)]
pub struct Interner {
    texts: HashSet<Text, RandomState>,
}

impl Interner {
    /// The shared text equal to `text`.
    pub fn intern(&mut self, text: &str) -> Text {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        let shared: Text = text.into();
        self.texts.insert(shared.clone());
        shared
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn equal_texts_share_one_allocation() {
        let mut interner = Interner::default();
        let first = interner.intern("shop");
        assert!(Arc::ptr_eq(&first, &interner.intern("shop")));
        assert!(!Arc::ptr_eq(&first, &interner.intern("bank")));
    }
}
