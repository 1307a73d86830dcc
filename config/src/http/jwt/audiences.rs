//! For whom tokens have to be.

use crate::Text;

/// One of these has to be among a token's; none: it may be for anybody. A scheme and a slash at the end are no difference, as with Envoy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Audiences(Vec<Text>);

impl Audiences {
    /// These.
    pub fn new<'a>(audiences: impl IntoIterator<Item = &'a str>) -> Self {
        Self(audiences.into_iter().map(|one| Text::from(bare(one))).collect())
    }

    /// Whether a token for `audiences` will do.
    pub fn allow(&self, audiences: &[String]) -> bool {
        self.0.is_empty()
            || audiences
                .iter()
                .any(|one| self.0.iter().any(|known| **known == *bare(one)))
    }
}

fn bare(audience: &str) -> &str {
    let rest = audience
        .strip_prefix("http://")
        .or_else(|| audience.strip_prefix("https://"));
    let rest = rest.unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audience_is_the_same_with_a_scheme_and_a_slash() {
        let allowed = Audiences::new(["https://shop.test/", "api"]);
        for (audience, expected) in [
            ("shop.test", true),
            ("http://shop.test", true),
            ("api/", true),
            ("shop.test/x", false),
            ("API", false),
            ("", false),
        ] {
            assert_eq!(allowed.allow(&[audience.to_owned()]), expected, "{audience}");
        }
        assert!(!allowed.allow(&[]));
        assert!(Audiences::default().allow(&[]));
    }
}
