//! A filter in CEL, as Istio's Telemetry has it: `response.code >= 400 || connection.mtls == false`.
//!
//! The language is the `cel` crate's, the attributes are Envoy's. **What an evaluation can cost is settled when it is compiled**: there are no comprehensions
//! (nor are there in Envoy's), patterns are written out and compiled once, and of headers only those are looked at that are named. So it takes time in
//! proportion to the expression and to the texts that it looks at.
//!
//! An attribute that a request does not have is an error, which `||` and `&&` get over where the other side decides; an expression that ends in one is not
//! true. That is Envoy's rule, too.

mod attributes;
mod reading;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

use cel::common::ast::IdedExpr;
use cel::extractors::This;
use cel::{Context, Env, Program, Value};
use regex::Regex;

use self::attributes::Attribute;
use self::reading::Reading;
use super::filter::told;
use crate::http::{Fact, Facts};

/// Longest expression, in bytes.
const MAX_LENGTH: usize = 4096;

/// Most signs in one: each may be a level of its tree, which is walked by functions that call themselves.
const MAX_SIGNS: usize = 200;

/// Bytes of the stack that an expression is parsed on; [`MAX_SIGNS`] brackets take a few MiB where nothing is optimized.
const PARSERS_STACK: usize = 64 << 20;

/// Most levels of the tree that is evaluated on the stack of whoever serves requests. (What is joined by `&&` or `||` is a balanced tree.)
const MAX_LEVELS: usize = 32;

/// Most brackets around anything: the parser calls itself often for each.
const MAX_NESTING: usize = 16;

/// The function that patterns become: its argument is the pattern's number.
const MATCHES_COMPILED: &str = "@matches";

/// An expression that is compiled.
#[derive(Clone)]
pub struct Expression(Arc<Compiled>);

struct Compiled {
    text: String,
    tree: IdedExpr,
    attributes: Vec<&'static Attribute>,
    /// Header fields that are named, by what they are a field of.
    headers: Vec<(&'static str, String, Fact)>,
    patterns: Arc<[Regex]>,
}

/// Why a text is no expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadExpression {
    /// More than [`MAX_LENGTH`], [`MAX_SIGNS`] or [`MAX_NESTING`].
    #[error("has more than {MAX_LENGTH} bytes, {MAX_SIGNS} signs, or {MAX_NESTING} levels of brackets")]
    Long,
    /// Its tree has more than [`MAX_LEVELS`].
    #[error("has more than {MAX_LEVELS} levels")]
    Deep,
    /// Not CEL.
    #[error("is no expression of CEL: {0}")]
    Syntax(String),
    /// There is no such attribute.
    #[error("asks for `{0}`, which is no attribute of Envoy's")]
    Attribute(String),
    /// All of the headers.
    #[error("asks for all of `{0}`")]
    Headers(&'static str),
    /// There is no such function.
    #[error("calls `{0}`, which is not supported")]
    Function(String),
    /// A loop, or a value of a kind that nothing compares with.
    #[error("has {0}, which is not supported")]
    Construct(&'static str),
    /// No pattern.
    #[error("has the pattern `{0}`, which is none")]
    Pattern(String),
    /// It is only known later.
    #[error("has a pattern that is not written out")]
    ComputedPattern,
    /// It can't be the name of a field.
    #[error("asks for a field by `{0}`, which is no name")]
    Name(String),
}

impl BadExpression {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Long | Self::Deep => "shorten it, or write several logs".to_owned(),
            Self::Syntax(_) => "write for example response.code >= 400".to_owned(),
            Self::Attribute(_) => format!("write one of: {}", attributes::names().join(", ")),
            Self::Headers(all) => format!("name the field: {all}['x-user'], or 'x-user' in {all}"),
            Self::Function(_) => format!("use operators, or one of: {}", reading::FUNCTIONS.join(", ")),
            Self::Construct(_) => "compare attributes with values, and join that by && and ||".to_owned(),
            Self::Pattern(_) | Self::ComputedPattern => "write for example request.path.matches('^/api/')".to_owned(),
            Self::Name(_) => "write for example request.headers['x-user']".to_owned(),
        }
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expression({:?})", self.text())
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Eq for Expression {}

static STANDARD: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

impl Expression {
    /// Compiles a text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, BadExpression> {
        if is_too_long(text) {
            return Err(BadExpression::Long);
        }
        let parsed = parsed(text).map_err(BadExpression::Syntax)?;
        let mut reading = Reading::default();
        let tree = reading.read(&parsed, 0)?;
        Ok(Self(Arc::new(Compiled {
            text: text.to_owned(),
            tree,
            attributes: reading.attributes,
            headers: reading.headers,
            patterns: reading.patterns.into(),
        })))
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.0.text
    }

    /// Whether it is true of a request.
    pub fn is_true(&self, facts: &dyn Facts) -> bool {
        let compiled = &*self.0;
        let mut context = Context::with_env(STANDARD.clone());
        for attribute in &compiled.attributes {
            if let Some(value) = attribute.value(facts) {
                context.add_variable_from_value(attribute.name, value);
            }
        }
        for all in attributes::HEADERS {
            let mut fields: HashMap<String, Value> = HashMap::new();
            for (_, name, fact) in compiled.headers.iter().filter(|(of, ..)| *of == all) {
                if let Some(value) = told(fact, facts) {
                    fields.insert(name.clone(), value.into());
                }
            }
            context.add_variable_from_value(all, fields);
        }
        if !compiled.patterns.is_empty() {
            let patterns = compiled.patterns.clone();
            let matches = move |This(text): This<Arc<String>>, number: i64| -> bool {
                let pattern = usize::try_from(number).ok().and_then(|number| patterns.get(number));
                pattern.is_some_and(|pattern| pattern.is_match(&text))
            };
            if context.add_function(MATCHES_COMPILED, matches).is_err() {
                return false;
            }
        }
        context.resolve(&compiled.tree) == Ok(Value::Bool(true))
    }

    /// What it asks for.
    pub(super) fn facts(&self) -> impl Iterator<Item = &Fact> {
        let attributes = self.0.attributes.iter().map(|attribute| &attribute.fact);
        attributes.chain(self.0.headers.iter().map(|(.., fact)| fact))
    }
}

/// Reads a text as CEL; why it is none, else. The parser calls itself deeply, which is no matter on a stack of its own, and whatever it does not bear ends with
/// that.
fn parsed(text: &str) -> Result<IdedExpr, String> {
    let parse = || match Program::compile(text) {
        Ok(program) => Ok(program.expression().clone()),
        Err(errors) => Err(errors.to_string().lines().next().unwrap_or_default().to_owned()),
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .stack_size(PARSERS_STACK)
            .spawn_scoped(scope, parse);
        match thread.map(|thread| thread.join()) {
            Ok(Ok(parsed)) => parsed,
            Ok(Err(_)) => Err("the parser does not bear it".to_owned()),
            Err(error) => Err(format!("there is no thread to read it: {error}")),
        }
    })
}

/// Whether it could take more of the stack than there is. What stands in quotes is counted, too: nothing is to be understood yet.
fn is_too_long(text: &str) -> bool {
    let (mut depth, mut deepest) = (0_usize, 0);
    for sign in text.bytes() {
        match sign {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    let signs = text.bytes().filter(|sign| sign.is_ascii_punctuation()).count();
    text.len() > MAX_LENGTH || signs > MAX_SIGNS || deepest > MAX_NESTING
}

#[cfg(test)]
mod tests;
