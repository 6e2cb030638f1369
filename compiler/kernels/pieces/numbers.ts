/** Constants of kernel texts. */

/** The lowest f32: below every score and logit. */
export const LOWEST = -3.4028234663852886e38;
