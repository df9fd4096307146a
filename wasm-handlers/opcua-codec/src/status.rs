/// Whether a status says that there is nothing.
pub fn is_bad(code: u32) -> bool {
    code & 0x8000_0000 != 0
}

/// Letters of a server's words that are shown.
const MOST_SHOWN: usize = 200;

/// A status code, by its name where that tells users something, and what a server says of it, in one line.
pub fn status(code: u32, reason: &str) -> String {
    let name = match code {
        0x8001_0000 => "BadUnexpectedError",
        0x8007_0000 => "BadDecodingError",
        0x8008_0000 => "BadEncodingLimitsExceeded",
        0x800a_0000 => "BadTimeout",
        0x800b_0000 => "BadServiceUnsupported",
        0x800c_0000 => "BadShutdown",
        0x800d_0000 => "BadServerNotConnected",
        0x8010_0000 => "BadTooManyOperations",
        0x801f_0000 => "BadUserAccessDenied",
        0x8020_0000 => "BadIdentityTokenInvalid",
        0x8021_0000 => "BadIdentityTokenRejected",
        0x8022_0000 => "BadSecureChannelIdInvalid",
        0x8025_0000 => "BadSessionIdInvalid",
        0x8026_0000 => "BadSessionClosed",
        0x8027_0000 => "BadSessionNotActivated",
        0x8031_0000 => "BadNoCommunication",
        0x8032_0000 => "BadWaitingForInitialData",
        0x8033_0000 => "BadNodeIdInvalid",
        0x8034_0000 => "BadNodeIdUnknown",
        0x8035_0000 => "BadAttributeIdInvalid",
        0x803a_0000 => "BadNotReadable",
        0x8054_0000 => "BadSecurityModeRejected",
        0x8055_0000 => "BadSecurityPolicyRejected",
        0x8056_0000 => "BadTooManySessions",
        0x807d_0000 => "BadTcpServerTooBusy",
        0x807e_0000 => "BadTcpMessageTypeInvalid",
        0x8083_0000 => "BadTcpEndpointUrlInvalid",
        _ => "",
    };
    let code = format!("status {code:#010x}");
    let reason: String = reason.chars().filter(|letter| !letter.is_control()).take(MOST_SHOWN).collect();
    let parts = [name, &reason, &code];
    let mut said: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    let last = said.pop().unwrap_or_default();
    if said.is_empty() { last.to_owned() } else { format!("{} ({last})", said.join(", ")) }
}
