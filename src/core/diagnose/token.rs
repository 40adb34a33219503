//! A token, read as far as it can be read without a key. It is neither sent nor shown; only claims
//! that say who and for whom leave this module.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde_json::Value;

use crate::iam::Principal;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenKind {
    Jwt,
    /// `ya29.…`: for Google's APIs, not for Cloud Run services.
    Access,
    SignatureRemoved,
    Unreadable(&'static str),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub kind: TokenKind,
    pub issuer: String,
    pub audiences: Vec<String>,
    pub expires: Option<Timestamp>,
    /// When it begins to be valid, and when it was made.
    pub begins: Option<Timestamp>,
    pub email: Option<String>,
    /// How it says that it is signed; empty if it does not.
    pub algorithm: String,
    /// What makes one doubt that it is whole. Its signature is verified nowhere here.
    pub doubt: Option<&'static str>,
}

/// Characters of an RS256 signature by a key of 2048 bits, as Google signs ID tokens.
const SIGNATURE: usize = 342;

impl Token {
    fn not(kind: TokenKind) -> Self {
        Self {
            kind,
            issuer: String::new(),
            audiences: Vec::new(),
            expires: None,
            begins: None,
            email: None,
            algorithm: String::new(),
            doubt: None,
        }
    }

    /// Reads a token, with or without `Bearer`.
    pub fn read(text: &str) -> Self {
        let text = text.trim();
        let text = text.strip_prefix("Bearer ").unwrap_or(text).trim();
        if text.starts_with("ya29.") {
            return Self::not(TokenKind::Access);
        }
        let parts: Vec<&str> = text.split('.').collect();
        let [header, payload, signature] = parts.as_slice() else {
            return Self::not(TokenKind::Unreadable("it has not the three parts of one"));
        };
        let Ok(bytes) = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')) else {
            return Self::not(TokenKind::Unreadable("its second part is no base64"));
        };
        let Ok(claims) = serde_json::from_slice::<Value>(&bytes) else {
            return Self::not(TokenKind::Unreadable("its second part is no JSON"));
        };
        let text = |k: &str| claims[k].as_str().unwrap_or_default().to_owned();
        let audiences = match &claims["aud"] {
            Value::Array(list) => list
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            one => one.as_str().map(str::to_owned).into_iter().collect(),
        };
        let decoded = URL_SAFE_NO_PAD.decode(header.trim_end_matches('=')).ok();
        let header = decoded.and_then(|h| serde_json::from_slice::<Value>(&h).ok());
        let algorithm = header.and_then(|h| h["alg"].as_str().map(str::to_owned));
        let time = |k: &str| {
            let seconds = claims[k].as_f64()?;
            Timestamp::from_second(seconds as i64).ok()
        };
        let expires = time("exp");
        let doubt = match (&algorithm, expires) {
            (None, _) => Some("its first part does not say how it is signed"),
            (_, None) => Some("it does not say when it ends"),
            _ if signature.len() < SIGNATURE => Some("its signature is too short: it was cut off"),
            _ => None,
        };
        Self {
            kind: if *signature == "SIGNATURE_REMOVED_BY_GOOGLE" {
                TokenKind::SignatureRemoved
            } else {
                TokenKind::Jwt
            },
            issuer: text("iss"),
            audiences,
            expires,
            begins: time("nbf").max(time("iat")),
            email: Some(text("email")).filter(|e| !e.is_empty()),
            algorithm: algorithm.unwrap_or_default(),
            doubt,
        }
    }

    /// Who it is of, as IAM names it.
    pub fn principal(&self) -> Option<Principal> {
        let email = self.email.as_deref()?;
        let kind = if email.ends_with(".gserviceaccount.com") {
            "serviceAccount"
        } else {
            "user"
        };
        Principal::parse(&format!("{kind}:{email}")).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwt(claims: &str, signature: &str) -> String {
        format!("e30.{}.{signature}", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn tokens_are_distinguished() {
        let token = Token::read(&format!(
            "Bearer {}",
            jwt(
                r#"{"iss":"https://accounts.google.com","aud":"https://web.run.app","exp":1800000000,"email":"x@p.iam.gserviceaccount.com"}"#,
                "c2ln"
            )
        ));
        assert_eq!(token.kind, TokenKind::Jwt);
        assert_eq!(
            token.principal().unwrap().as_str(),
            "serviceAccount:x@p.iam.gserviceaccount.com"
        );
        assert_eq!(token.audiences, ["https://web.run.app"]);
        assert_eq!(Token::read("ya29.abc").kind, TokenKind::Access);
        assert_eq!(
            Token::read(&jwt("{}", "SIGNATURE_REMOVED_BY_GOOGLE")).kind,
            TokenKind::SignatureRemoved
        );
        for text in ["", "abc", "a.b.c", "a.!!.c"] {
            assert!(
                matches!(Token::read(text).kind, TokenKind::Unreadable(_)),
                "{text}"
            );
        }
    }
}
