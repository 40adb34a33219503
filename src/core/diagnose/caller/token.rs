//! The token of a request: is there one, is it whole, is it for this service, and how to mint one that is.

use jiff::SignedDuration;

use crate::{
    diagnose::{
        Cause, Fix, Outcome, Walk, address,
        symptom::{Refusal, Sender},
        token::{Token, TokenKind},
    },
    iam::{Principal, ServiceSettings},
};

/// Audience of the ID tokens that gcloud prints for its user accounts. Cloud Run accepts it for
/// users.
///
/// Sources: gcloud's `core/config.py`, and
/// <https://docs.cloud.google.com/run/docs/authenticating/developers>.
const GCLOUD: &str = "32555940559.apps.googleusercontent.com";

/// What is wrong with a token: the cause, the evidence, and the verdict.
type Flaw = (Cause, String, &'static str);

impl Walk<'_> {
    pub(in crate::diagnose) fn token(&mut self) {
        let refusal = self.facts.symptom.refusal;
        match (&self.facts.token, refusal) {
            (Some(_), Some(Refusal::NoToken)) => {
                self.step(
                    "token",
                    Outcome::Fail,
                    "Cloud Run says that no credentials came with the request: this token did not arrive",
                );
                self.conclude(
                    Cause::NoToken,
                    "The token does not reach the service.",
                    "Something in between drops or replaces the Authorization header: send the ID token in X-Serverless-Authorization.",
                );
            }
            // A valid token came, and what is wrong with one gets 401.
            (Some(token), Some(Refusal::NoGrant | Refusal::NoTokenOrNoGrant))
                if self.flaw(token).is_some() =>
            {
                self.another_came(token);
            }
            (Some(token), _) => self.given(token),
            (None, Some(Refusal::NoToken)) => self.no_token(),
            (None, Some(Refusal::BadToken)) => {
                self.step(
                    "token",
                    Outcome::Fail,
                    "Cloud Run says that the token could not be verified",
                );
                let fix = self.mint("Send one Google-signed ID token, in one Authorization header; a token of the application's own goes there only if the ID token goes in X-Serverless-Authorization. Give it here with --token to see what is wrong with it.");
                self.conclude(
                    Cause::NotAnIdToken,
                    "A token came that is no valid ID token for this service.",
                    fix,
                );
            }
            (None, Some(Refusal::NoGrant)) => self.step(
                "token",
                Outcome::Pass,
                "Cloud Run says that the principal lacks run.routes.invoke: a valid token came",
            ),
            (None, Some(Refusal::NoTokenOrNoGrant)) => {
                let by = match self.facts.symptom.sent_by {
                    Some(Sender::Browser) => {
                        "; by its user agent a browser called, and a browser sends none by itself"
                    }
                    _ => "",
                };
                self.step(
                    "token",
                    Outcome::Maybe,
                    format!("Cloud Run says the same of a request without a token and of a principal without a grant{by}"),
                );
            }
            (None, _) => self.step("token", Outcome::Skipped, "no token was given (--token)"),
        }
    }

    fn no_token(&mut self) {
        self.step(
            "token",
            Outcome::Fail,
            "Cloud Run says that no credentials came with the request",
        );
        let fix = self.send_one();
        self.conclude(Cause::NoToken, "The request came without a token.", fix);
    }

    /// How whoever sent the request comes to send a token.
    pub(super) fn send_one(&self) -> Fix {
        match self.facts.symptom.sent_by {
            Some(Sender::Google { name, token }) => format!("It was sent by {name}. {token}").into(),
            Some(Sender::Browser) => "A browser has no ID token to send. For people, put Identity-Aware Proxy in front, or call through gcloud run services proxy.".into(),
            None => self.mint("Send an ID token: Authorization: Bearer TOKEN, with the service's URL as audience. A browser sends none; for people, use IAP or gcloud run services proxy."),
        }
    }

    /// A token was given that is not the one which came.
    fn another_came(&mut self, token: &Token) {
        let flaw = self.flaw(token).map(|(_, evidence, _)| evidence);
        self.open(
            "token",
            Outcome::Maybe,
            format!(
                "this one did not come: {}, for which Cloud Run answers 401; the answer is another",
                flaw.unwrap_or_default()
            ),
            "give the token that was sent with this very request",
        );
    }

    /// What is known of a token that was given.
    fn given(&mut self, token: &Token) {
        if let Some((cause, evidence, verdict)) = self.flaw(token) {
            self.step("token", Outcome::Fail, evidence);
            let fix = self.mint(match cause {
                Cause::ForeignIssuer => "Exchange it for a Google ID token (service account impersonation), or leave it in Authorization for the application and send a Google ID token in X-Serverless-Authorization.",
                Cause::TokenExpired => "Mint a new one; ID tokens last an hour.",
                Cause::WrongAudience => "Mint it for the service's URL without a path, or add the audience to the service's custom audiences.",
                Cause::SignatureRemoved => "Mint a new one and call with that, straight from where it was minted.",
                _ => "Mint an ID token for the service's URL.",
            });
            return self.conclude(cause, verdict, fix);
        }
        self.audience_of_a_tag(token);
        let of = token.principal();
        if let (Some(of), Some(named)) = (&of, self.facts.named_caller())
            && of != named
        {
            return self.somebody_elses(of, named);
        }
        let evidence = match &of {
            Some(of) => format!("by what it says a Google ID token for this service, of {of}"),
            None => {
                "by what it says a Google ID token for this service that names nobody by e-mail"
                    .to_owned()
            }
        };
        if self.facts.symptom.refusal == Some(Refusal::BadToken) {
            self.step("token", Outcome::Maybe, evidence);
            return self.conclude(
                Cause::NotAnIdToken,
                "The token that was given is in order, and Cloud Run could not verify the one that came.",
                "Something else was sent: a second Authorization header, two tokens in one, another token in X-Serverless-Authorization, or one with a changed signature.",
            );
        }
        match of {
            Some(_) if token.doubt.is_some() => self.open(
                "token",
                Outcome::Maybe,
                format!("{evidence}; but {}", token.doubt.unwrap_or_default()),
                "give the whole token, as it was sent",
            ),
            Some(_) => self.step("token", Outcome::Pass, evidence),
            None => self.open(
                "token",
                Outcome::Maybe,
                evidence,
                "mint it with --include-email, and give that one: it says who calls",
            ),
        }
    }

    /// Cloud Run judges whoever a token is of, whoever was meant.
    fn somebody_elses(&mut self, of: &Principal, named: &Principal) {
        self.step(
            "token",
            Outcome::Fail,
            format!("it is of {of}, and not of {named}"),
        );
        let fix = self.mint(&format!(
            "Send a token of {named}; or ask about {of}, without --as."
        ));
        self.settle(
            Cause::WrongPrincipal,
            format!("The token is somebody else's: Cloud Run judges {of}, and not {named}."),
            fix,
        );
    }

    /// What is wrong with a token, if anything is.
    pub(super) fn flaw(&self, token: &Token) -> Option<Flaw> {
        self.form(token)
            .or_else(|| self.issuer_and_end(token))
            .or_else(|| self.audience(token))
    }

    fn form(&self, token: &Token) -> Option<Flaw> {
        match &token.kind {
            TokenKind::Access => Some((
                Cause::NotAnIdToken,
                "it is an access token, not an ID token".into(),
                "Cloud Run takes ID tokens only.",
            )),
            TokenKind::Unreadable(why) => Some((
                Cause::NotAnIdToken,
                format!("it is no JWT: {why}"),
                "That is no ID token.",
            )),
            TokenKind::SignatureRemoved => Some((
                Cause::SignatureRemoved,
                "its signature reads SIGNATURE_REMOVED_BY_GOOGLE: it is a copy of what an application was handed, without what proves it".into(),
                "The token's signature was removed; it cannot be used again.",
            )),
            TokenKind::Jwt if !matches!(token.algorithm.as_str(), "" | "RS256" | "ES256") => Some((
                Cause::NotAnIdToken,
                format!("it says that it is signed with {:?}; Google signs with RS256", token.algorithm),
                "Google did not sign it.",
            )),
            TokenKind::Jwt => None,
        }
    }

    fn issuer_and_end(&self, token: &Token) -> Option<Flaw> {
        let issuer = token.issuer.as_str();
        if !matches!(
            issuer,
            "https://accounts.google.com" | "accounts.google.com"
        ) {
            return Some((
                Cause::ForeignIssuer,
                format!("its issuer is {issuer:?}, not Google"),
                "The token is not signed by Google.",
            ));
        }
        // Clocks differ a little.
        let soon = self.facts.at + SignedDuration::from_mins(5);
        if let Some(begins) = token.begins.filter(|b| *b > soon) {
            return Some((
                Cause::NotAnIdToken,
                format!("it begins to be valid at {begins}"),
                "The token is not valid yet.",
            ));
        }
        let ended = token.expires.filter(|e| *e <= self.facts.at)?;
        Some((
            Cause::TokenExpired,
            format!("it ended at {ended}"),
            "The token has expired.",
        ))
    }

    fn audience(&self, token: &Token) -> Option<Flaw> {
        let facts = self.facts;
        let front = facts.front.value()?;
        let accepted = |a: &String| address::accepts(a, &facts.service, front);
        let is_user = token
            .principal()
            .is_some_and(|p| p.key().starts_with("user:"));
        if token.audiences.iter().any(accepted)
            || (is_user && token.audiences.iter().any(|a| a == GCLOUD))
        {
            return None;
        }
        if Self::is_for_a_tag(token, front) {
            return None;
        }
        let own: Vec<&str> = front
            .urls
            .iter()
            .chain(&front.custom_audiences)
            .map(String::as_str)
            .collect();
        let evidence = format!(
            "its audience is {}; accepted: {}",
            token.audiences.join(", "),
            own.join(", ")
        );
        let verdict = "The token is for another audience.";
        Some((Cause::WrongAudience, evidence, verdict))
    }

    fn is_for_a_tag(token: &Token, front: &ServiceSettings) -> bool {
        let of_tag = |a: &String| front.tag_urls.iter().any(|u| a.trim_end_matches('/') == u);
        token.audiences.iter().any(of_tag)
    }

    /// Google documents the service's own URL, also for calls of a tag.
    fn audience_of_a_tag(&mut self, token: &Token) {
        let facts = self.facts;
        let Some(front) = facts.front.value() else {
            return;
        };
        let accepted = |a: &String| address::accepts(a, &facts.service, front);
        if Self::is_for_a_tag(token, front) && !token.audiences.iter().any(accepted) {
            let url = address::url(front);
            self.open(
                "audience",
                Outcome::Maybe,
                "it is the URL of a tag, which Google does not document as one",
                format!("mint the token for {url}"),
            );
        }
    }

    /// How whoever calls gets a token. A user account cannot choose an audience with gcloud
    /// (`Requires valid service account`), and needs not.
    ///
    /// Source: gcloud's `surface/auth/print_identity_token.py`.
    pub(super) fn mint(&self, words: &str) -> Fix {
        let facts = self.facts;
        let url = facts.front.value().map_or("URL", address::url);
        let caller = facts.principal.clone();
        let caller = caller.or_else(|| facts.token.as_ref().and_then(Token::principal));
        let account = |name: &str| {
            format!(
                "gcloud auth print-identity-token --impersonate-service-account={name} --audiences={url} --include-email"
            )
        };
        let user = "gcloud auth print-identity-token";
        let gcloud = match caller.as_ref().map(|c| c.as_str().split_once(':')) {
            Some(Some(("serviceAccount", email))) => account(email),
            Some(Some(("user", _))) => user.to_owned(),
            _ => format!("{user}    # as yourself\n{}", account("ACCOUNT")),
        };
        let is_user = gcloud == user;
        let more = if is_user {
            ""
        } else {
            " On Google Cloud, the metadata server's identity endpoint mints one as well."
        };
        Fix {
            words: format!("{words}{more}"),
            gcloud,
            ..Fix::default()
        }
    }
}
