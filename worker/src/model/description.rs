//! A decoder's shape and size, read from the table in `model.bin`.

use std::fmt;

use super::header::Header;

/// A decoder's shape and size. Prints as one line.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// Decoder layers.
    pub layers: u64,
    /// Values in the output of a layer.
    pub width: u64,
    /// The number of weights.
    pub parameters: u64,
    /// Bytes of all weights, as converted.
    pub bytes: u64,
    /// The type of a layer's weights, as converted.
    pub weights: &'static str,
    /// Heads of attention.
    pub heads: u64,
    /// Elements of a token's keys and values in all layers. CTranslate2 stores them once for each head, even if several heads
    /// share them, unless all heads do.
    pub cached: u64,
    /// The most elements that a layer computes for a token: inside its feed-forward part, or queries, keys and values.
    pub inner: u64,
    /// Tokens that the model chooses from.
    pub choices: u64,
    /// The most tokens that a token attends to; 0 means no limit.
    pub window: u32,
}

impl Description {
    pub(super) fn of(header: &Header) -> Self {
        let setting = |name: &str| header.setting(name).and_then(|value| u64::try_from(value).ok());
        // CTranslate2's own default is 8 heads.
        let heads = setting("decoder/num_heads").unwrap_or(8).max(1);
        let mut this = Self { weights: "unknown", heads, ..Self::default() };
        for (name, variable) in header.variables() {
            // A damaged file can hold any shape, so the product saturates.
            let sides = variable.shape.iter().map(|side| u64::from(*side));
            let elements = sides.fold(1, u64::saturating_mul);
            this.bytes += u64::from(variable.bytes);
            if variable.bytes > 0 && !variable.shape.is_empty() && !name.ends_with("_scale") {
                this.parameters = this.parameters.saturating_add(elements);
            }
            let side = |place: usize| variable.shape.get(place).copied().map_or(0, u64::from);
            if let Some(layer) = name.strip_suffix("/self_attention/linear_0/weight") {
                let output = header.shape(&format!("{layer}/self_attention/linear_1/weight"));
                let queries = output.and_then(|shape| shape.get(1)).copied().map_or(0, u64::from);
                let all_share = setting(&format!("{layer}/self_attention/multi_query")) == Some(1);
                this.layers += 1;
                this.weights = type_name(variable.kind);
                this.cached += 2 * if all_share { queries / heads } else { queries };
                this.inner = this.inner.max(side(0));
            }
            if name.ends_with("/ffn/linear_0/weight") {
                let gate = header.shape(&name.replace("linear_0", "linear_0_noact")).is_some();
                this.inner = this.inner.max(side(0) * if gate { 2 } else { 1 });
            }
            match name {
                "decoder/embeddings/weight" => this.width = side(1),
                "decoder/projection/weight" => this.choices = side(0),
                _ if name.ends_with("/sliding_window") => {
                    let window = variable.value.and_then(|window| u32::try_from(window).ok()).unwrap_or(0);
                    // Of several windows the narrowest counts.
                    this.window = [this.window, window].into_iter().filter(|window| *window > 0).min().unwrap_or(0);
                }
                _ => {}
            }
        }
        this
    }

    /// Whether the model was converted to 16 bits.
    pub fn is_half(&self) -> bool {
        matches!(self.weights, "float16" | "bfloat16")
    }
}

impl fmt::Display for Description {
    #[allow(clippy::cast_precision_loss, reason = "it is rounded")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layers, width, weights, .. } = self;
        let millions = self.parameters as f64 / 1e6;
        write!(f, "decoder of {layers} layers, {width} wide, {millions:.1} million parameters, converted to {weights}")
    }
}

/// CTranslate2's types by their numbers.
fn type_name(kind: u8) -> &'static str {
    match kind {
        0 => "float32",
        1 => "int8",
        2 => "int16",
        3 => "int32",
        4 => "float16",
        5 => "bfloat16",
        _ => "an unknown type",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::super::header::tests::table;
    use super::*;

    #[test]
    fn layers_parameters_and_memory_are_counted() {
        // Eight heads of one query each. Every two heads share keys and values.
        let variables: [(&str, &[u32]); 4] = [
            ("decoder/embeddings/weight", &[10, 8]),
            ("decoder/layer_0/self_attention/linear_0/weight", &[16, 8]),
            ("decoder/layer_0/self_attention/linear_1/weight", &[8, 8]),
            ("decoder/layer_0/ffn/linear_0/weight", &[20, 8]),
        ];
        let bin = table("S", &variables, &[("decoder/projection/weight", "decoder/embeddings/weight")]);
        let this = Description::of(&Header::read(&mut Cursor::new(bin)).unwrap());
        let parameters = 80 + 128 + 64 + 160;
        assert_eq!((this.layers, this.width, this.parameters, this.weights), (1, 8, parameters, "float32"));
        assert_eq!((this.bytes, this.cached, this.inner), (4 * parameters, 16, 20));
        assert_eq!((this.heads, this.choices, this.window), (8, 10, 0));
    }
}
