//! What the API server refuses, and what it does not answer: the one is said on the object that it is about, and stops
//! nothing else; the other has nothing to do with any object.

use std::error::Error;

/// Why the API server refuses a request that will be refused again as long as nobody changes anything, in its own words:
/// an invalid object, a quota, a policy, a webhook. `None` for what passes by itself.
#[must_use]
pub fn refusal(error: &kube::Error) -> Option<String> {
    let kube::Error::Api(status) = error else {
        return None;
    };
    match status.code {
        // Not logged in; gone; changed meanwhile; too many requests; not up.
        401 | 404 | 409 | 410 | 429 | 502..=504 => None,
        500.. => webhook(&status.message),
        _ => Some(status.message.trim().to_owned()),
    }
}

/// The webhook that does not answer. How it fails differs each time, by ports for example.
fn webhook(message: &str) -> Option<String> {
    let rest = message.split_once("failed calling webhook \"")?.1;
    let name = rest.split_once('"')?.0;
    Some(format!("failed calling webhook \"{name}\""))
}

/// Whether the API server has answered at all.
#[must_use]
pub fn is_answer(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(_))
}

/// Whether what is behind an error is that the API server did not answer.
#[must_use]
pub fn is_unanswered(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<kube::Error>() {
            return !is_answer(error);
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::ProvisionError;
    use crate::volume_group::GroupError;

    fn answer(code: u16, message: &str) -> kube::Error {
        let status = serde_json::json!({"status": "Failure", "message": message, "reason": "", "code": code});
        kube::Error::Api(serde_json::from_value(status).expect("a status"))
    }

    #[test]
    fn what_lasts_is_told_in_the_words_of_the_api_server() {
        for code in [400, 403, 413, 422] {
            assert_eq!(
                refusal(&answer(code, "exceeded quota: q")).as_deref(),
                Some("exceeded quota: q")
            );
        }
        for code in [401, 404, 409, 429, 500, 503, 504] {
            assert_eq!(refusal(&answer(code, "not now")), None, "{code}");
        }
        let down = |port| {
            let how = format!("Post \"https://a.b.svc:443/\": read tcp 10.0.0.1:{port}->10.0.0.2:443: reset");
            let text =
                format!("Internal error occurred: failed calling webhook \"w.example\": failed to call webhook: {how}");
            refusal(&answer(500, &text))
        };
        assert_eq!(down(4001).as_deref(), Some("failed calling webhook \"w.example\""));
        assert_eq!(down(4001), down(4002), "what is the same is said once");
    }

    #[test]
    fn no_answer_is_known_however_deep_it_is() {
        let deep = |error| ProvisionError::Publish(GroupError::Api(error));
        assert!(is_unanswered(&deep(kube::Error::LinesCodecMaxLineLengthExceeded)));
        assert!(!is_unanswered(&deep(answer(403, "no"))));
        assert!(!is_unanswered(&ProvisionError::NameTaken("no".to_owned())));
    }
}
