//! "Did you mean …?": the known name that is nearest to a mistyped one.

/// Looks for near names until it has spent its budget: a file in which everything is misnamed must not cost a comparison
/// of everything with everything.
pub(super) struct Nearest {
    comparisons_left: usize,
}

/// A fraction of a second's worth of comparing short names.
const COMPARISONS: usize = 500_000;

impl Default for Nearest {
    fn default() -> Self {
        Self {
            comparisons_left: COMPARISONS,
        }
    }
}

impl Nearest {
    /// The nearest of `known` to `name`, if one is near enough that it may be meant: a third of the letters may differ. Of
    /// equally near ones the first in the alphabet.
    pub(super) fn among<'k>(&mut self, name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
        let lower = name.to_ascii_lowercase();
        let mut best: Option<&str> = None;
        let mut bound = name.len().min(MAX_NAME) / 3;
        for candidate in known {
            self.comparisons_left = self.comparisons_left.checked_sub(1)?;
            if candidate.len().abs_diff(name.len()) > bound || candidate.len() > MAX_NAME {
                continue;
            }
            let distance = strsim::osa_distance(&lower, &candidate.to_ascii_lowercase());
            if distance < bound || (distance == bound && best.is_none_or(|best| candidate < best)) {
                (best, bound) = (Some(candidate), distance);
            }
        }
        best
    }
}

/// Longer names are not compared: the cost is the product of the lengths.
const MAX_NAME: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_if_it_is_near() {
        let known = ["addresses", "address_family", "namespace", "name"];
        let mut nearest = Nearest::default();
        assert_eq!(nearest.among("adresses", known), Some("addresses"));
        assert_eq!(nearest.among("Addresses", known), Some("addresses"));
        assert_eq!(nearest.among("nmae", known), Some("name"));
        assert_eq!(nearest.among("ports", known), None);
        assert_eq!(nearest.among("web-1", ["web-4", "web-2", "web-3"]), Some("web-2"));
        assert_eq!(nearest.among("", known), None);
    }

    #[test]
    fn the_search_ends_when_its_budget_is_spent() {
        let mut nearest = Nearest { comparisons_left: 1 };
        assert_eq!(nearest.among("adresses", ["addresses"]), Some("addresses"));
        assert_eq!(nearest.among("adresses", ["addresses"]), None);
    }
}
