//! `HeaderValueOption`s and names of fields that are removed.

use underpass_config::http::{AppendAction, Format, HeaderEdit, HeaderEdits, HeaderText, Stage, is_editable};

use super::super::refusal::{At, Refused, each, only_if};
use super::super::values::{field_name, field_value};
use crate::proto::envoy::config::core::v3 as wire;
use wire::header_value_option::HeaderAppendAction;

/// Edits of requests or responses.
pub(in super::super) fn edits(
    stage: Stage,
    added: &[wire::HeaderValueOption],
    removed: &[String],
) -> Result<HeaderEdits, Refused> {
    Ok(HeaderEdits {
        remove: each("(removed)", removed, |name: &String| editable(name))?,
        edits: each("", added, |wire| edit(stage, wire))?,
    })
}

/// The name of a field that may be edited.
pub(in super::super) fn editable(name: &str) -> Result<http::header::HeaderName, Refused> {
    let name = field_name(name)?;
    let why = "frames the message, or is the host, and is the proxy's own";
    only_if(is_editable(&name), "", &format!("is `{name}`, which {why}"))?;
    Ok(name)
}

fn edit(stage: Stage, wire: &wire::HeaderValueOption) -> Result<HeaderEdit, Refused> {
    let wire::HeaderValueOption { header, append_action } = wire;
    let wire::HeaderValue { key, value } = header.as_ref().ok_or_else(|| Refused::missing("header"))?;
    let action = match HeaderAppendAction::try_from(*append_action) {
        Ok(HeaderAppendAction::AppendIfExistsOrAdd) => AppendAction::Add,
        Ok(HeaderAppendAction::OverwriteIfExistsOrAdd) => AppendAction::Set,
        Ok(HeaderAppendAction::AddIfAbsent) => AppendAction::Default,
        Ok(HeaderAppendAction::OverwriteIfExists) => AppendAction::Replace,
        Err(_) => return Err(Refused::unsupported("append_action", append_action)),
    };
    Ok(HeaderEdit {
        name: editable(key).at("header.key")?,
        value: header_text(stage, value).at("header.value")?,
        action,
    })
}

/// A value in which there may be operators.
pub(in super::super) fn header_text(stage: Stage, value: &str) -> Result<HeaderText, Refused> {
    let format = Format::parse(value, stage);
    let format = format.map_err(|why| Refused::new("", format!("{why}: {}", why.remedy(stage))))?;
    // What stands beside the operators has to be fit for a header, too.
    let whole = field_value(format.fixed().unwrap_or(value))?;
    Ok(match format.fixed() {
        Some(_) => HeaderText::Fixed(whole),
        None => HeaderText::Told(format),
    })
}
