//! A decoder's shape and size, read from the table in `model.bin`.

use std::fmt;

use super::header::Header;

/// Bytes of an element of the keys and values on a processor.
const ELEMENT: u64 = 4;

/// What a decoder is made of. Prints as a line.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// Decoder layers.
    pub layers: u64,
    /// Values in a layer's output.
    pub width: u64,
    /// Weights.
    pub parameters: u64,
    /// Bytes of all weights, as converted.
    pub bytes: u64,
    /// The type of a layer's weights, as converted.
    pub weights: &'static str,
    /// Bytes that a token of a prompt or an answer takes while its request runs on a processor: its keys and values.
    pub bytes_per_token: u64,
}

impl Description {
    pub(super) fn of(header: &Header) -> Self {
        let mut this = Self { weights: "unknown", ..Self::default() };
        for (name, variable) in header.variables() {
            // A file can claim any shape.
            let sides = variable.shape.iter().map(|side| u64::from(*side));
            let elements = sides.fold(1, u64::saturating_mul);
            this.bytes += u64::from(variable.bytes);
            if variable.bytes > 0 && !variable.shape.is_empty() && !name.ends_with("_scale") {
                this.parameters = this.parameters.saturating_add(elements);
            }
            let side = |place: usize| variable.shape.get(place).copied().map_or(0, u64::from);
            // Queries, keys and values are one matrix; what it has beyond the queries, which the output matrix takes in.
            if let Some(layer) = name.strip_suffix("/self_attention/linear_0/weight") {
                let output = header.shape(&format!("{layer}/self_attention/linear_1/weight"));
                let queries = output.and_then(|shape| shape.get(1)).copied().map_or(0, u64::from);
                this.layers += 1;
                this.weights = type_name(variable.kind);
                this.bytes_per_token += side(0).saturating_sub(queries) * ELEMENT;
            }
            if name == "decoder/embeddings/weight" {
                this.width = side(1);
            }
        }
        this
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
        _ => "a type of its own",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::super::header::tests::table;
    use super::*;

    #[test]
    fn layers_parameters_and_memory_are_counted() {
        // Eight queries, and two heads of four for keys and values together.
        let variables: [(&str, &[u32]); 4] = [
            ("decoder/embeddings/weight", &[10, 8]),
            ("decoder/layer_0/self_attention/linear_0/weight", &[16, 8]),
            ("decoder/layer_0/self_attention/linear_1/weight", &[8, 8]),
            ("decoder/num_heads", &[]),
        ];
        let bin = table("S", &variables, &[("decoder/projection/weight", "decoder/embeddings/weight")]);
        let this = Description::of(&Header::read(&mut Cursor::new(bin)).unwrap());
        assert_eq!((this.layers, this.width, this.parameters, this.weights), (1, 8, 80 + 128 + 64, "float32"));
        assert_eq!((this.bytes, this.bytes_per_token), (4 * (80 + 128 + 64 + 1), 8 * 4));
    }
}
